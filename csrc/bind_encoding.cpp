// The Python face of Encoder and Specials: `llmfast._bpe.Core`. Text comes in as UTF-8; the GIL is let go for long work.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.h"
#include "decoder.h"
#include "documents.h"
#include "encoder.h"
#include "parallel.h"
#include "python_ids.h"
#include "rank_file.h"
#include "specials.h"

namespace nb = nanobind;
using namespace nb::literals;

using namespace llmfast;

Pattern pattern_named(std::string_view name) {
    static constexpr std::pair<std::string_view, Pattern> kNames[] = {
        {"none", Pattern::none},     {"gpt2", Pattern::gpt2},   {"cl100k", Pattern::cl100k},
        {"llama3", Pattern::llama3}, {"qwen2", Pattern::qwen2}, {"o200k", Pattern::o200k},
        {"deepseek", Pattern::deepseek}};
    for (const auto& [known, pattern] : kNames) {
        if (name == known) return pattern;
    }
    throw nb::value_error(("no pattern is named '" + std::string(name) + "'").c_str());
}

namespace {

constexpr size_t kWorthReleasing = 2048;  // bytes from which the GIL is let go: below, that costs more than it gives

// The UTF-8 of a str. It is cached in the object unless that is ASCII. A str with surrogates has none: pairs are
// joined and lone ones replaced, as tiktoken does, and `owner` keeps the result.
std::string_view utf8_of(nb::handle text, nb::object& owner) {
    if (!PyUnicode_Check(text.ptr())) {
        throw nb::type_error(("text must be a str, got " + std::string(Py_TYPE(text.ptr())->tp_name)).c_str());
    }
    Py_ssize_t length = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &length);
    if (!data) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw nb::python_error();
        PyErr_Clear();
        owner = text.attr("encode")("utf-16", "surrogatepass").attr("decode")("utf-16", "replace");
        data = PyUnicode_AsUTF8AndSize(owner.ptr(), &length);
        if (!data) throw nb::python_error();
    }
    return {data, static_cast<size_t>(length)};
}

std::string_view bytes_of(nb::handle value) {
    char* data = nullptr;
    Py_ssize_t length = 0;
    if (PyBytes_AsStringAndSize(value.ptr(), &data, &length) < 0) throw nb::python_error();
    return {data, static_cast<size_t>(length)};
}

// A str, or UTF-8 in bytes, a memory map, a memoryview; `owner` keeps the latter from moving.
std::string_view text_of(nb::handle value, nb::object& owner) {
    if (PyUnicode_Check(value.ptr())) return utf8_of(value, owner);
    if (PyBytes_Check(value.ptr())) return bytes_of(value);
    owner = checked(PyMemoryView_FromObject(value.ptr()));
    const Py_buffer* buffer = PyMemoryView_GET_BUFFER(owner.ptr());
    if (!PyBuffer_IsContiguous(buffer, 'C')) throw nb::value_error("text must be contiguous in memory");
    return {static_cast<const char*>(buffer->buf), static_cast<size_t>(buffer->len)};
}

template <typename T>
nb::object to_numpy(Growing<T> items) {
    const size_t size = items.size();
    T* const data = items.release();
    nb::capsule owner(data, [](void* memory) noexcept { std::free(memory); });
    return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, {size}, owner));
}

struct ReleaseGil {
    explicit ReleaseGil(size_t bytes) {
        if (bytes >= kWorthReleasing) released.emplace();
    }
    std::optional<nb::gil_scoped_release> released;
};

class Core {
  public:
    // `ranks` is a dict of bytes to int, or the contents of a rank file.
    Core(nb::handle ranks, nb::dict specials, std::string_view pattern)
        : encoder_(vocabulary_from(ranks), pattern_named(pattern)),
          specials_(specials_from(specials)),
          decoder_(encoder_.vocabulary(), specials_) {}

    IdBuffer encode_ordinary(nb::handle text) const {
        nb::object owner;
        const std::string_view utf8 = utf8_of(text, owner);
        IdBuffer ids;
        const ReleaseGil release(utf8.size());
        encoder_.encode(utf8, ids);
        return ids;
    }

    // Ids of `text`, in which the special tokens of `allowed` count; ValueError for one of `disallowed`.
    IdBuffer encode(nb::handle text, nb::handle allowed, nb::handle disallowed, size_t* last = nullptr) const {
        nb::object owner;
        const std::string_view utf8 = utf8_of(text, owner);
        const Specials::Enabled enabled = allowed_by(allowed);
        check_disallowed(utf8, allowed, disallowed, enabled);
        IdBuffer ids;
        const ReleaseGil release(utf8.size());
        const size_t tokens = encode_with_specials(encoder_, specials_, enabled, utf8, ids);
        if (last) *last = tokens;
        return ids;
    }

    size_t count(nb::handle text) const {
        nb::object owner;
        const std::string_view utf8 = text_of(text, owner);
        const ReleaseGil release(utf8.size());
        return encoder_.count(utf8);
    }

    IdBuffer encode_piece(nb::bytes piece, bool look_up) const {
        IdBuffer ids;
        encoder_.encode_piece(bytes_of(piece), ids, look_up);
        return ids;
    }

    // The special token, a str, that is found first in `text` of those in `wanted`, or None.
    nb::object find_special(nb::handle text, nb::handle wanted) const {
        nb::object owner;
        const Specials::Match match = specials_.find(utf8_of(text, owner), 0, enabled_by(wanted));
        return match.special ? nb::cast(match.special->bytes) : nb::none();
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
        decoder_.write({ids.data(), ids.size()}, PyBytes_AS_STRING(result.ptr()), size);
        return result;
    }

    nb::object decode_text(nb::handle tokens, const char* errors) const {
        const IdBuffer ids = ids_of(tokens);
        const std::span<const uint32_t> all(ids.data(), ids.size());
        const Decoder::Size size = measured(ids);
        const Py_ssize_t bytes = static_cast<Py_ssize_t>(size.bytes);
        if (!size.is_ascii) {
            ByteBuffer utf8;
            decoder_.write(all, utf8.room(size.bytes), size.bytes);
            return checked(PyUnicode_DecodeUTF8(utf8.data(), bytes, errors));
        }
        nb::object result = checked(PyUnicode_New(bytes, 0x7F));
        decoder_.write(all, static_cast<char*>(PyUnicode_DATA(result.ptr())), size.bytes);
        return result;
    }

    nb::object find(nb::bytes token) const {
        const std::string_view bytes = bytes_of(token);
        for (const Special& special : specials_.all()) {
            if (special.bytes == bytes) return nb::int_(special.id);
        }
        const uint32_t id = encoder_.vocabulary().find(bytes);
        return id == kNoToken ? nb::none() : nb::object(nb::int_(id));
    }

    nb::tuple encode_documents(nb::handle documents, std::optional<uint32_t> separator, size_t threads,
                               bool narrow) const {
        std::vector<nb::object> owners;
        const std::vector<std::string_view> texts = texts_of(documents, owners);
        return narrow ? arrays_of<uint16_t>(texts, separator, threads) : arrays_of<uint32_t>(texts, separator, threads);
    }

    nb::list encode_batch(nb::handle texts, nb::handle allowed, nb::handle disallowed, size_t threads) const {
        std::vector<nb::object> owners;
        const std::vector<std::string_view> all = texts_of(texts, owners, utf8_of);
        const Specials::Enabled enabled = allowed_by(allowed);
        for (const std::string_view text : all) check_disallowed(text, allowed, disallowed, enabled);
        std::vector<IdBuffer> results(all.size());
        {
            const nb::gil_scoped_release release;
            run_parallel(all.size(), threads, [&](size_t i, size_t) {
                encode_with_specials(encoder_, specials_, enabled, all[i], results[i]);
            });
        }
        nb::list lists;
        for (IdBuffer& ids : results) {
            lists.append(list_of(ids));
            ids = IdBuffer();
        }
        return lists;
    }

  private:
    template <typename Id>
    nb::tuple arrays_of(const std::vector<std::string_view>& texts, std::optional<uint32_t> separator,
                        size_t threads) const {
        Growing<int64_t> offsets;
        offsets.room(texts.size() + 1);
        offsets.grow(texts.size() + 1);
        Growing<Id> ids;
        {
            const nb::gil_scoped_release release;
            ids = llmfast::encode_documents<Id>(encoder_, texts, separator, threads, offsets.data());
        }
        return nb::make_tuple(to_numpy(std::move(ids)), to_numpy(std::move(offsets)));
    }

    static Vocabulary vocabulary_from(nb::handle ranks) {
        if (nb::isinstance<nb::dict>(ranks)) return vocabulary_from_dict(nb::borrow<nb::dict>(ranks));
        std::vector<uint32_t> ids;
        std::vector<size_t> ends = {0};
        std::string bytes;
        for_each_rank(bytes_of(ranks), [&](std::string_view token, uint32_t rank, size_t) {
            bytes += token;
            ends.push_back(bytes.size());
            ids.push_back(rank);
        });
        std::vector<std::string_view> tokens(ids.size());
        for (size_t i = 0; i < ids.size(); ++i) tokens[i] = {bytes.data() + ends[i], ends[i + 1] - ends[i]};
        return Vocabulary(tokens, ids);
    }

    static Vocabulary vocabulary_from_dict(nb::dict ranks) {
        std::vector<std::string_view> tokens;
        std::vector<uint32_t> ids;
        tokens.reserve(nb::len(ranks));
        ids.reserve(nb::len(ranks));
        PyObject *token = nullptr, *id = nullptr;
        for (Py_ssize_t at = 0; PyDict_Next(ranks.ptr(), &at, &token, &id);) {
            tokens.push_back(bytes_of(token));
            ids.push_back(id_from(id));
        }
        return Vocabulary(tokens, ids);
    }

    static Specials specials_from(nb::dict specials) {
        std::vector<Special> all;
        nb::object owner;
        for (const auto& [text, id] : specials) all.push_back({std::string(utf8_of(text, owner)), id_from(id)});
        return Specials(std::move(all));
    }

    static uint32_t id_from(nb::handle value) {
        const unsigned long long id = PyLong_AsUnsignedLongLong(value.ptr());
        if (PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_OverflowError)) throw nb::python_error();
            PyErr_Clear();
        } else if (id <= kLargestId) {
            return static_cast<uint32_t>(id);
        }
        throw nb::value_error(("the id " + std::string(nb::str(value).c_str()) + " is not in 0.." +
                               std::to_string(kLargestId)).c_str());
    }

    std::vector<std::string_view> texts_of(nb::handle documents, std::vector<nb::object>& owners,
                                           std::string_view (*one)(nb::handle, nb::object&) = text_of) const {
        if (PyUnicode_Check(documents.ptr()) || PyBytes_Check(documents.ptr())) {
            throw nb::type_error("expected a sequence of texts, got one text: put it in a list");
        }
        // A tuple keeps the texts, whatever another thread does to a list while this one works without the GIL.
        nb::object all = checked(PySequence_Tuple(documents.ptr()));
        owners.push_back(all);
        std::vector<std::string_view> texts(static_cast<size_t>(PyTuple_GET_SIZE(all.ptr())));
        for (size_t i = 0; i < texts.size(); ++i) {
            nb::object owner;
            texts[i] = one(PyTuple_GET_ITEM(all.ptr(), static_cast<Py_ssize_t>(i)), owner);
            if (owner.is_valid()) owners.push_back(owner);
        }
        return texts;
    }

    static bool is_all(nb::handle which) {
        return PyUnicode_Check(which.ptr()) && PyUnicode_CompareWithASCIIString(which.ptr(), "all") == 0;
    }

    Specials::Enabled enabled_by(nb::handle set) const {
        Specials::Enabled enabled = specials_.none();
        for (size_t i = 0; i < specials_.all().size(); ++i) {
            const std::string& bytes = specials_.all()[i].bytes;
            const int found = PySequence_Contains(set.ptr(), nb::str(bytes.data(), bytes.size()).ptr());
            if (found < 0) throw nb::python_error();
            if (found) Specials::enable(enabled, i);
        }
        return enabled;
    }

    static bool is_empty(nb::handle set) {
        const Py_ssize_t size = PyObject_Size(set.ptr());
        if (size < 0) throw nb::python_error();
        return size == 0;
    }

    Specials::Enabled allowed_by(nb::handle allowed) const {
        if (is_all(allowed)) return specials_.every();
        return is_empty(allowed) ? specials_.none() : enabled_by(allowed);
    }

    // Raises tiktoken's error for the first disallowed special token in `text`. tiktoken looks for any text that is
    // disallowed, special token or not, so that the general case is left to Python.
    void check_disallowed(std::string_view text, nb::handle allowed, nb::handle disallowed,
                          const Specials::Enabled& enabled) const {
        const char* const module = "llmfast.tokenizer.encoding";
        if (!is_all(disallowed)) {
            if (is_empty(disallowed)) return;
            nb::module_::import_(module).attr("check_disallowed")(nb::str(text.data(), text.size()), disallowed);
            return;
        }
        Specials::Match match;
        if (enabled.empty()) {
            match = specials_.find(text, 0, specials_.every());
        } else {
            Specials::Enabled rest = specials_.every();
            Specials::subtract(rest, enabled);
            match = specials_.find(text, 0, rest);
        }
        if (!match.special) return;
        nb::module_::import_(module).attr("raise_disallowed_special_token")(nb::cast(match.special->bytes));
    }

    Decoder::Size measured(const IdBuffer& ids) const {
        const Decoder::Size size = decoder_.measure({ids.data(), ids.size()});
        if (!size.unknown) return size;
        throw nb::key_error(("Invalid token for decoding: " + std::to_string(*size.unknown)).c_str());
    }

    Encoder encoder_;
    Specials specials_;
    Decoder decoder_;
};

// The tokens of a tiktoken rank file: lines of base64 and a number. ValueError for a line that is not, or that repeats.
nb::dict parse_ranks(nb::bytes contents) {
    nb::dict ranks;
    size_t tokens = 0;
    for_each_rank(bytes_of(contents), [&](std::string_view token, uint32_t rank, size_t line) {
        const nb::bytes key(token.data(), token.size());
        const nb::int_ value(rank);
        if (PyDict_SetItem(ranks.ptr(), key.ptr(), value.ptr()) < 0) throw nb::python_error();
        if (nb::len(ranks) != ++tokens) {
            throw std::invalid_argument("line " + std::to_string(line) + " repeats token " + printable(token));
        }
    });
    return ranks;
}

nb::list split_text(nb::handle text, std::string_view pattern) {
    nb::object owner;
    const std::string_view all = text_of(text, owner);
    nb::list pieces;
    uint32_t ends[256];
    for (size_t at = 0; at < all.size();) {
        const size_t count = split(pattern_named(pattern), all.data() + at, all.size() - at, ends, 256);
        uint32_t start = 0;
        for (size_t i = 0; i < count; ++i) {
            pieces.append(nb::bytes(all.data() + at + start, ends[i] - start));
            start = ends[i];
        }
        at += start;
    }
    return pieces;
}

size_t boundary(nb::handle text, std::string_view pattern, size_t from) {
    nb::object owner;
    const std::string_view all = text_of(text, owner);
    return certain_boundary(pattern_named(pattern), all.data(), all.size(), from);
}

}  // namespace

void bind_encoding(nb::module_& module) {
    nb::class_<Core>(module, "Core", "An immutable vocabulary with its splitting pattern; safe from many threads.")
        .def(nb::init<nb::handle, nb::dict, std::string_view>(), "ranks"_a, "specials"_a, "pattern"_a)
        .def("encode_ordinary", [](const Core& core, nb::handle text) { return list_of(core.encode_ordinary(text)); })
        .def("encode_ordinary_to_numpy",
             [](const Core& core, nb::handle text) { return to_numpy(core.encode_ordinary(text)); })
        .def("encode", [](const Core& core, nb::handle text, nb::handle allowed,
                          nb::handle disallowed) { return list_of(core.encode(text, allowed, disallowed)); })
        .def("encode_to_numpy", [](const Core& core, nb::handle text, nb::handle allowed,
                                   nb::handle disallowed) { return to_numpy(core.encode(text, allowed, disallowed)); })
        .def("encode_with_last", [](const Core& core, nb::handle text, nb::handle allowed, nb::handle disallowed) {
            size_t last = 0;
            const IdBuffer ids = core.encode(text, allowed, disallowed, &last);
            return nb::make_tuple(list_of(ids), last);
        }, "The ids, and how many of them the last piece has.")
        .def("encode_batch", &Core::encode_batch)
        .def("encode_piece", [](const Core& core, nb::bytes piece) { return list_of(core.encode_piece(piece, true)); })
        .def("merge_piece", [](const Core& core, nb::bytes piece) { return list_of(core.encode_piece(piece, false)); })
        .def("encode_documents", &Core::encode_documents, "documents"_a, "separator"_a.none(), "threads"_a, "narrow"_a)
        .def("count", &Core::count)
        .def_prop_ro("largest_id", &Core::largest_id)
        .def_prop_ro("n_ordinary", &Core::n_ordinary)
        .def("find_special", &Core::find_special)
        .def("find", &Core::find)
        .def("token_bytes", &Core::token_bytes, "token"_a.none())
        .def("decode", &Core::decode_text)
        .def("decode_bytes", &Core::decode_bytes);
    module.def("parse_ranks", &parse_ranks, "The dict of bytes to int of a tiktoken rank file.");
    module.def("certain_boundary", &boundary, "text"_a, "pattern"_a, "start"_a,
               "The first offset in the UTF-8, at or after `start` > 0, where it can be cut without changing its pieces.");
    module.def("split", &split_text, "text"_a, "pattern"_a, "The pieces of a str or bytes under a named pattern.");
}
