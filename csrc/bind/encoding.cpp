// Python bindings of Encoder, Specials and Decoder: `llmfast._bpe.Core`.
//
// Arguments come as handles that may be None and are checked here, since nanobind's own errors speak of C++ signatures.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string_view.h>

#include <cstdlib>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "bind/gil.h"
#include "bind/ids.h"
#include "bind/module.h"
#include "bind/text.h"
#include "bind/vocabulary.h"
#include "encode/decoder.h"
#include "encode/documents.h"
#include "encode/encoder.h"
#include "system/parallel.h"
#include "vocabulary/specials.h"

namespace nb = nanobind;

using namespace llmfast;

namespace {

// Bytes or ids from which the GIL is released; for less work, releasing it takes longer than the work.
constexpr size_t kWorthReleasing = 2048;

template <typename T>
nb::object to_numpy(Buffer<T> items) {
    const size_t size = items.size();
    T* const data = items.release();
    nb::capsule owner(data, [](void* memory) noexcept { std::free(memory); });
    return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, {size}, owner));
}

// Releases the GIL if there is enough work.
struct MayReleaseGil {
    explicit MayReleaseGil(size_t size) {
        if (size >= kWorthReleasing) released.emplace();
    }
    std::optional<WithoutGil> released;
};

class Core {
  public:
    // `ranks` is a dict of bytes to int, or the contents of a rank file; `specials` a dict of str to int.
    static void construct(Core* self, nb::handle ranks, nb::handle specials, std::string_view pattern) {
        const Pattern named = pattern_named(pattern);
        Tokens tokens(ranks);
        std::vector<Special> given = specials_from(specials);
        const WithoutGil released;
        new (self) Core(Vocabulary(tokens.bytes, tokens.ids), std::move(given), named);
    }

    Core(Vocabulary vocabulary, std::vector<Special> specials, Pattern pattern)
        : encoder_(std::move(vocabulary), pattern),
          decoder_(encoder_.vocabulary(), specials),
          specials_(std::move(specials)) {}

    IdBuffer encode_ordinary(nb::handle text) const {
        nb::object owner;
        const std::string_view utf8 = utf8_of(text, owner);
        IdBuffer ids;
        const MayReleaseGil release(utf8.size());
        encoder_.encode(utf8, ids);
        return ids;
    }

    // Ids of `text`, in which the special tokens of `allowed` count; ValueError for one of `disallowed`.
    IdBuffer encode(nb::handle text, nb::handle allowed, nb::handle disallowed, size_t* last = nullptr) const {
        nb::object owner;
        const std::string_view utf8 = utf8_of(text, owner);
        const SpecialRules rules = rules_of(allowed, disallowed);
        check_texts(utf8, rules);
        IdBuffer ids;
        const Special* refused = nullptr;
        {
            const MayReleaseGil release(utf8.size());
            refused = specials_.find(utf8, 0, rules.refused).special;
            if (!refused) {
                const size_t tokens = encode_with_specials(encoder_, specials_, rules.allowed, utf8, ids);
                if (last) *last = tokens;
            }
        }
        if (refused) raise_refused(*refused);
        return ids;
    }

    nb::list encode_batch(nb::handle texts, nb::handle allowed, nb::handle disallowed, size_t threads) const {
        std::vector<nb::object> owners;
        const std::vector<std::string_view> all = texts_of(texts, "text", owners, utf8_of);
        const SpecialRules rules = rules_of(allowed, disallowed);
        for (const std::string_view text : all) check_texts(text, rules);
        std::vector<IdBuffer> results(all.size());
        const Special* refused = nullptr;
        {
            const WithoutGil released;
            for (size_t i = 0; i < all.size() && !refused; ++i)
                refused = specials_.find(all[i], 0, rules.refused).special;
            if (!refused) {
                run_parallel(all.size(), threads, [&](size_t i, size_t) {
                    encode_with_specials(encoder_, specials_, rules.allowed, all[i], results[i]);
                });
            }
        }
        if (refused) raise_refused(*refused);
        nb::list lists;
        size_t ids = 0;
        for (IdBuffer& result : results) {
            lists.append(list_of(result));
            ids += result.size() + 1;
            result = IdBuffer();
            if (ids < static_cast<size_t>(kIdsBetweenSignals)) continue;
            check_signals();
            ids = 0;
        }
        return lists;
    }

    // `separator` is an id or None; `narrow`: ids are uint16.
    nb::tuple encode_documents(nb::handle documents, nb::handle separator, size_t threads, bool narrow) const {
        std::vector<nb::object> owners;
        const std::vector<std::string_view> texts = texts_of(documents, "documents", owners, text_of);
        std::optional<uint32_t> id;
        if (!separator.is_none()) id = as_id(separator.ptr());
        return narrow ? arrays_of<uint16_t>(texts, id, threads) : arrays_of<uint32_t>(texts, id, threads);
    }

    size_t count(nb::handle text) const {
        nb::object owner;
        const std::string_view utf8 = text_of(text, owner);
        const MayReleaseGil release(utf8.size());
        return encoder_.count(utf8);
    }

    IdBuffer encode_piece(nb::handle piece, bool look_up) const {
        const std::string_view bytes = bytes_of(piece, "piece");
        IdBuffer ids;
        const MayReleaseGil release(bytes.size());
        encoder_.encode_piece(bytes, ids, look_up);
        return ids;
    }

    // The ids of a list of pieces, each a str or bytes that is not to be split, and how many of them the last one has.
    nb::tuple encode_pieces(nb::handle pieces) const {
        if (!PyList_CheckExact(pieces.ptr()))
            throw_type_error(std::string("pieces must be a list, got ") + kind_of(pieces));
        const nb::object all = checked(PyList_AsTuple(pieces.ptr()));  // which other threads do not change meanwhile
        IdBuffer ids;
        size_t last = 0;
        SignalCounter counter;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(all.ptr()); ++i) {
            counter.add(16);
            const nb::handle piece = PyTuple_GET_ITEM(all.ptr(), i);
            nb::object owner;
            const std::string_view bytes =
                PyUnicode_Check(piece.ptr()) ? utf8_of(piece, owner) : bytes_of(piece, "a piece");
            const MayReleaseGil release(bytes.size());
            last = encoder_.encode_piece(bytes, ids);
        }
        return nb::make_tuple(list_of(ids), last);
    }

    // `text` cut at the allowed special tokens: a list of str, where there is text, and of their ids; ValueError for a
    // special token of `disallowed`.
    nb::list cut_at_specials(nb::handle text, nb::handle allowed, nb::handle disallowed) const {
        nb::object owner;
        const std::string_view utf8 = utf8_of(text, owner);
        const SpecialRules rules = rules_of(allowed, disallowed);
        check_texts(utf8, rules);
        const auto find = [&](size_t start, const Specials::Enabled& enabled) {
            const MayReleaseGil release(utf8.size() - start);
            return specials_.find(utf8, start, enabled);
        };
        if (const Special* const refused = find(0, rules.refused).special) raise_refused(*refused);
        nb::list parts;
        for (size_t start = 0; start < utf8.size();) {
            check_signals();
            const auto [end, special] = find(start, rules.allowed);
            if (end > start) parts.append(nb::str(utf8.data() + start, end - start));
            if (!special) break;
            parts.append(nb::int_(special->id));
            start = end + special->bytes.size();
        }
        return parts;
    }

    uint32_t largest_id() const { return decoder_.largest_id(); }
    size_t n_ordinary() const { return encoder_.vocabulary().size(); }

    nb::object token_bytes(nb::handle token) const {
        const std::string_view bytes = decoder_.bytes(as_id(token.ptr()));
        if (bytes.empty()) return nb::none();
        return nb::bytes(bytes.data(), bytes.size());
    }

    nb::object decode_bytes(nb::handle tokens) const {
        const IdBuffer ids = ids_of(tokens);
        const size_t size = measured(ids).bytes;
        nb::object result = checked(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
        write(ids, PyBytes_AS_STRING(result.ptr()), size);
        return result;
    }

    nb::object decode_text(nb::handle tokens, nb::handle errors) const {
        if (!PyUnicode_Check(errors.ptr()))
            throw_type_error(std::string("errors must be a str, got ") + kind_of(errors));
        const char* const how = PyUnicode_AsUTF8(errors.ptr());
        if (!how) throw nb::python_error();
        const IdBuffer ids = ids_of(tokens);
        const Decoder::Size size = measured(ids);
        const Py_ssize_t bytes = static_cast<Py_ssize_t>(size.bytes);
        if (!size.is_ascii) {
            ByteBuffer utf8;
            write(ids, utf8.prepare(size.bytes), size.bytes);
            return decoded(utf8.data(), bytes, how);
        }
        nb::object result = checked(PyUnicode_New(bytes, 0x7F));
        write(ids, static_cast<char*>(PyUnicode_DATA(result.ptr())), size.bytes);
        return result;
    }

    nb::object find(nb::handle token) const {
        const std::string_view bytes = bytes_of(token, "token");
        const size_t special = specials_.index(bytes);
        if (special < specials_.all().size()) return nb::int_(specials_.all()[special].id);
        const uint32_t id = encoder_.vocabulary().find(bytes);
        return id == kNoToken ? nb::none() : nb::object(nb::int_(id));
    }

  private:
    template <typename Id>
    nb::tuple arrays_of(const std::vector<std::string_view>& texts, std::optional<uint32_t> separator,
                        size_t threads) const {
        Buffer<int64_t> offsets;
        offsets.prepare(texts.size() + 1);
        offsets.commit(texts.size() + 1);
        Buffer<Id> ids;
        {
            const WithoutGil released;
            ids = llmfast::encode_documents<Id>(encoder_, texts, separator, threads, offsets.data());
        }
        return nb::make_tuple(to_numpy(std::move(ids)), to_numpy(std::move(offsets)));
    }

    // Which special tokens a call recognizes, and which texts it refuses.
    struct SpecialRules {
        Specials::Enabled allowed, refused;
        nb::object refused_texts;  // a collection of texts to refuse, special tokens or not; empty if there is none
    };

    static bool is_all(nb::handle which) {
        return PyUnicode_Check(which.ptr()) && PyUnicode_CompareWithASCIIString(which.ptr(), "all") == 0;
    }

    static void check_is_collection(nb::handle which, const char* name) {
        if (PyUnicode_Check(which.ptr())) {
            PyErr_Format(PyExc_TypeError, "%s must be 'all' or a set of str, got the str %R", name, which.ptr());
            throw nb::python_error();
        }
        if (PyObject_Size(which.ptr()) >= 0) return;
        PyErr_Clear();
        throw_type_error(std::string(name) + " must be 'all' or a set of str, got " + kind_of(which));
    }

    // The special tokens in `allowed`. Other texts in it are ignored, since they are no special tokens.
    Specials::Enabled allowed_by(nb::handle allowed) const {
        if (is_all(allowed)) return specials_.every();
        check_is_collection(allowed, "allowed_special");
        Specials::Enabled enabled;
        SignalCounter counter;
        for (nb::handle text : nb::iter(allowed)) {
            if (!PyUnicode_Check(text.ptr())) {
                throw_type_error(std::string("allowed_special must be 'all' or a set of str, but holds ") +
                                 kind_of(text));
            }
            counter.add(16);
            nb::object owner;
            const size_t which = specials_.index(utf8_of(text, owner));
            if (which == specials_.all().size()) continue;
            enabled.resize(specials_.all().size());
            enabled[which] = true;
        }
        return enabled;
    }

    // tiktoken refuses any text that is disallowed, special token or not, so that the general case is left to Python.
    SpecialRules rules_of(nb::handle allowed, nb::handle disallowed) const {
        SpecialRules rules;
        rules.allowed = allowed_by(allowed);
        if (is_all(disallowed)) {
            rules.refused = specials_.every();
            Specials::subtract(rules.refused, rules.allowed);
            return rules;
        }
        check_is_collection(disallowed, "disallowed_special");
        if (PyObject_Size(disallowed.ptr()) > 0) rules.refused_texts = nb::borrow(disallowed);
        return rules;
    }

    static nb::object in_encoding_module(const char* name) {
        return nb::module_::import_("llmfast.tokenizer.encoding").attr(name);
    }

    static void check_texts(std::string_view text, const SpecialRules& rules) {
        if (!rules.refused_texts.is_valid()) return;
        const nb::object arguments = nb::make_tuple(nb::str(text.data(), text.size()), rules.refused_texts);
        const nb::object check = in_encoding_module("check_disallowed");
        checked(may_wait_for_gil([&] { return PyObject_CallObject(check.ptr(), arguments.ptr()); }));
    }

    // Raises tiktoken's error for a disallowed special token.
    [[noreturn]] static void raise_refused(const Special& special) {
        call_python(in_encoding_module("raise_disallowed_special_token"), nb::cast(std::string_view(special.bytes)));
        throw std::logic_error("raise_disallowed_special_token returned");
    }

    Decoder::Size measured(const IdBuffer& ids) const {
        Decoder::Size size;
        {
            const MayReleaseGil release(ids.size());
            size = decoder_.measure({ids.data(), ids.size()});
        }
        if (!size.unknown) return size;
        throw nb::key_error(("Invalid token for decoding: " + std::to_string(*size.unknown)).c_str());
    }

    void write(const IdBuffer& ids, char* out, size_t size) const {
        const MayReleaseGil release(ids.size());
        decoder_.write({ids.data(), ids.size()}, out, size);
    }

    Encoder encoder_;
    Decoder decoder_;
    Specials specials_;
};

}  // namespace

void bind_encoding(nb::module_& module) {
    const auto any = [](const char* name) { return nb::arg(name).none(); };
    nb::class_<Core>(module, "Core", "An immutable vocabulary with its splitting pattern; safe from many threads.")
        .def("__init__", &Core::construct, any("ranks"), any("specials"), nb::arg("pattern"))
        .def(
            "encode_ordinary", [](const Core& core, nb::handle text) { return list_of(core.encode_ordinary(text)); },
            any("text"))
        .def(
            "encode_ordinary_to_numpy",
            [](const Core& core, nb::handle text) { return to_numpy(core.encode_ordinary(text)); }, any("text"))
        .def(
            "encode",
            [](const Core& core, nb::handle text, nb::handle allowed, nb::handle disallowed) {
                return list_of(core.encode(text, allowed, disallowed));
            },
            any("text"), any("allowed"), any("disallowed"))
        .def(
            "encode_to_numpy",
            [](const Core& core, nb::handle text, nb::handle allowed, nb::handle disallowed) {
                return to_numpy(core.encode(text, allowed, disallowed));
            },
            any("text"), any("allowed"), any("disallowed"))
        .def(
            "encode_with_last",
            [](const Core& core, nb::handle text, nb::handle allowed, nb::handle disallowed) {
                size_t last = 0;
                const IdBuffer ids = core.encode(text, allowed, disallowed, &last);
                return nb::make_tuple(list_of(ids), last);
            },
            any("text"), any("allowed"), any("disallowed"), "The ids, and how many of them the last piece has.")
        .def("encode_batch", &Core::encode_batch, any("texts"), any("allowed"), any("disallowed"), nb::arg("threads"))
        .def("encode_documents", &Core::encode_documents, any("documents"), any("separator"), nb::arg("threads"),
             nb::arg("narrow"))
        .def("count", &Core::count, any("text"))
        .def(
            "encode_piece", [](const Core& core, nb::handle piece) { return list_of(core.encode_piece(piece, true)); },
            any("piece"))
        .def(
            "merge_piece", [](const Core& core, nb::handle piece) { return list_of(core.encode_piece(piece, false)); },
            any("piece"))
        .def("encode_pieces", &Core::encode_pieces, any("pieces"))
        .def("cut_at_specials", &Core::cut_at_specials, any("text"), any("allowed"), any("disallowed"))
        .def_prop_ro("largest_id", &Core::largest_id)
        .def_prop_ro("n_ordinary", &Core::n_ordinary)
        .def("find", &Core::find, any("token"))
        .def("token_bytes", &Core::token_bytes, any("token"))
        .def("decode", &Core::decode_text, any("tokens"), any("errors"))
        .def("decode_bytes", &Core::decode_bytes, any("tokens"));
}
