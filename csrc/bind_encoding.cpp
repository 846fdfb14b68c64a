// The Python face of Encoder and Specials: `llmfast._bpe.Core`. Text comes in as UTF-8, the GIL is let go for the work.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>

#include "bindings.h"
#include "encoder.h"
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

// The UTF-8 of a str (cached in the object where it is not ASCII); UnicodeEncodeError for lone surrogates.
std::string_view utf8_of(nb::handle text) {
    Py_ssize_t length = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &length);
    if (!data) throw nb::python_error();
    return {data, static_cast<size_t>(length)};
}

std::string_view bytes_of(nb::handle value) {
    char* data = nullptr;
    Py_ssize_t length = 0;
    if (PyBytes_AsStringAndSize(value.ptr(), &data, &length) < 0) throw nb::python_error();
    return {data, static_cast<size_t>(length)};
}

std::string_view text_of(nb::handle value) { return PyBytes_Check(value.ptr()) ? bytes_of(value) : utf8_of(value); }

// An array that owns memory from malloc.
template <typename T>
nb::object to_numpy(T* data, size_t size) {
    nb::capsule owner(data, [](void* memory) noexcept { std::free(memory); });
    return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, {size}, owner));
}

nb::object to_numpy(IdBuffer ids) {
    const size_t size = ids.size();
    return to_numpy(ids.release(), size);
}

template <typename T>
T* allocate(size_t count) {
    T* memory = static_cast<T*>(std::malloc(std::max<size_t>(count, 1) * sizeof(T)));
    if (!memory) throw std::bad_alloc();
    return memory;
}

nb::list to_list(const IdBuffer& ids) {
    nb::list list = nb::steal<nb::list>(PyList_New(static_cast<Py_ssize_t>(ids.size())));
    if (!list.ptr()) throw nb::python_error();
    for (size_t i = 0; i < ids.size(); ++i) {
        PyObject* id = PyLong_FromUnsignedLong(ids.data()[i]);
        if (!id) throw nb::python_error();
        PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), id);
    }
    return list;
}

class Core {
  public:
    Core(nb::dict ranks, nb::dict specials, std::string_view pattern)
        : encoder_(vocabulary_from(ranks), pattern_named(pattern)), specials_(specials_from(specials)) {}

    IdBuffer encode_ordinary(nb::handle text) const {
        const std::string_view utf8 = text_of(text);
        IdBuffer ids;
        nb::gil_scoped_release release;
        encoder_.encode(utf8, ids);
        return ids;
    }

    // Ids of `text`, in which the special tokens of the set `allowed` count, and how many the last piece has.
    std::pair<IdBuffer, size_t> encode(nb::handle text, nb::handle allowed) const {
        const std::vector<bool> enabled = enabled_by(allowed);
        const std::string_view utf8 = utf8_of(text);
        IdBuffer ids;
        size_t last = 0, start = 0;
        nb::gil_scoped_release release;
        while (true) {
            const auto [end, special] = specials_.find(utf8, start, enabled);
            const size_t pieces = encoder_.encode(utf8.substr(start, end - start), ids);
            if (!special) return {std::move(ids), end > start ? pieces : last};
            ids.push_back(special->id);
            last = 0;
            start = end + special->bytes.size();
        }
    }

    nb::object find_special(nb::handle text, nb::handle wanted) const {
        const Specials::Match match = specials_.find(utf8_of(text), 0, enabled_by(wanted));
        return match.special ? nb::cast(match.special->bytes) : nb::none();
    }

    IdBuffer encode_piece(nb::bytes piece, bool look_up) const {
        IdBuffer ids;
        encoder_.encode_piece(bytes_of(piece), ids, look_up);
        return ids;
    }

    nb::object token_bytes(uint32_t id) const {
        std::string_view bytes = bytes_by_id(id);
        if (bytes.empty()) return nb::none();
        return nb::bytes(bytes.data(), bytes.size());
    }

    nb::bytes decode(nb::handle ids) const {
        nb::object fast = nb::steal(PySequence_Fast(ids.ptr(), "tokens must be a sequence of ints"));
        if (!fast.is_valid()) throw nb::python_error();
        std::string text;
        const Py_ssize_t count = PySequence_Fast_GET_SIZE(fast.ptr());
        for (Py_ssize_t i = 0; i < count; ++i) {
            const uint32_t id = nb::cast<uint32_t>(nb::handle(PySequence_Fast_GET_ITEM(fast.ptr(), i)));
            const std::string_view bytes = bytes_by_id(id);
            if (bytes.empty()) {
                throw nb::key_error(("Invalid token for decoding: " + std::to_string(id)).c_str());
            }
            text += bytes;
        }
        return nb::bytes(text.data(), text.size());
    }

    nb::object find(nb::bytes token) const {
        const std::string_view bytes = bytes_of(token);
        for (const Special& special : specials_.all()) {
            if (special.bytes == bytes) return nb::int_(special.id);
        }
        const uint32_t id = bytes.empty() ? kNoToken : encoder_.vocabulary().find(bytes);
        return id == kNoToken ? nb::none() : nb::object(nb::int_(id));
    }

    nb::tuple encode_documents(nb::sequence documents, std::optional<uint32_t> separator, size_t threads,
                               bool narrow) const {
        nb::object fast = nb::steal(PySequence_Fast(documents.ptr(), "documents must be a sequence of str or bytes"));
        if (!fast.is_valid()) throw nb::python_error();
        const size_t count = static_cast<size_t>(PySequence_Fast_GET_SIZE(fast.ptr()));
        std::vector<std::string_view> texts(count);
        for (size_t i = 0; i < count; ++i) {
            texts[i] = text_of(PySequence_Fast_GET_ITEM(fast.ptr(), static_cast<Py_ssize_t>(i)));
        }
        int64_t* offsets = allocate<int64_t>(count + 1);
        const nb::object offsets_array = to_numpy(offsets, count + 1);
        if (narrow) {
            uint16_t* ids = encode_all<uint16_t>(texts, separator, threads, offsets);
            return nb::make_tuple(to_numpy(ids, static_cast<size_t>(offsets[count])), offsets_array);
        }
        uint32_t* ids = encode_all<uint32_t>(texts, separator, threads, offsets);
        return nb::make_tuple(to_numpy(ids, static_cast<size_t>(offsets[count])), offsets_array);
    }

  private:
    static Vocabulary vocabulary_from(nb::dict ranks) {
        std::vector<std::string_view> tokens;
        std::vector<uint32_t> ids;
        tokens.reserve(nb::len(ranks));
        ids.reserve(nb::len(ranks));
        PyObject *token = nullptr, *id = nullptr;
        for (Py_ssize_t at = 0; PyDict_Next(ranks.ptr(), &at, &token, &id);) {
            tokens.push_back(bytes_of(token));
            ids.push_back(nb::cast<uint32_t>(nb::handle(id)));
        }
        return Vocabulary(tokens, ids);
    }

    static Specials specials_from(nb::dict specials) {
        std::vector<Special> all;
        for (const auto& [text, id] : specials) all.push_back({std::string(utf8_of(text)), nb::cast<uint32_t>(id)});
        return Specials(std::move(all));
    }

    std::vector<bool> enabled_by(nb::handle set) const {
        std::vector<bool> enabled(specials_.all().size());
        for (size_t i = 0; i < enabled.size(); ++i) {
            const std::string& bytes = specials_.all()[i].bytes;
            const int found = PySequence_Contains(set.ptr(), nb::str(bytes.data(), bytes.size()).ptr());
            if (found < 0) throw nb::python_error();
            enabled[i] = found;
        }
        return enabled;
    }

    std::string_view bytes_by_id(uint32_t id) const {
        const std::string_view bytes = encoder_.vocabulary().bytes(id);
        if (!bytes.empty()) return bytes;
        for (const Special& special : specials_.all()) {
            if (special.id == id) return special.bytes;
        }
        return {};
    }

    template <typename Id>
    Id* encode_all(const std::vector<std::string_view>& texts, std::optional<uint32_t> separator, size_t threads,
                   int64_t* offsets) const {
        nb::gil_scoped_release release;
        std::vector<IdBuffer> parts(texts.size());
        std::atomic<size_t> next{0};
        std::exception_ptr failure;
        std::mutex failure_guard;
        const auto work = [&] {
            try {
                for (size_t i = next++; i < texts.size(); i = next++) {
                    encoder_.encode(texts[i], parts[i]);
                    if (separator) parts[i].push_back(*separator);
                }
            } catch (...) {
                const std::lock_guard guard(failure_guard);
                failure = std::current_exception();
            }
        };
        std::vector<std::thread> pool;
        for (size_t i = 1; i < std::min(threads, texts.size()); ++i) pool.emplace_back(work);
        work();
        for (std::thread& thread : pool) thread.join();
        if (failure) std::rethrow_exception(failure);

        offsets[0] = 0;
        for (size_t i = 0; i < texts.size(); ++i) offsets[i + 1] = offsets[i] + static_cast<int64_t>(parts[i].size());
        Id* ids = allocate<Id>(static_cast<size_t>(offsets[texts.size()]));
        for (size_t i = 0; i < texts.size(); ++i) {
            std::copy_n(parts[i].data(), parts[i].size(), ids + offsets[i]);
        }
        return ids;
    }

    Encoder encoder_;
    Specials specials_;
};

}  // namespace

void bind_encoding(nb::module_& module) {
    nb::class_<Core>(module, "Core", "An immutable vocabulary with its splitting pattern; safe from many threads.")
        .def(nb::init<nb::dict, nb::dict, std::string_view>(), "ranks"_a, "specials"_a, "pattern"_a)
        .def("encode_ordinary", [](const Core& core, nb::handle text) { return to_list(core.encode_ordinary(text)); })
        .def("encode_ordinary_to_numpy",
             [](const Core& core, nb::handle text) { return to_numpy(core.encode_ordinary(text)); })
        .def("encode", [](const Core& core, nb::handle text, nb::handle allowed) {
            auto [ids, last] = core.encode(text, allowed);
            return nb::make_tuple(to_list(ids), last);
        })
        .def("encode_to_numpy", [](const Core& core, nb::handle text,
                                   nb::handle allowed) { return to_numpy(core.encode(text, allowed).first); })
        .def("encode_piece", [](const Core& core, nb::bytes piece) { return to_list(core.encode_piece(piece, true)); })
        .def("merge_piece", [](const Core& core, nb::bytes piece) { return to_list(core.encode_piece(piece, false)); })
        .def("encode_documents", &Core::encode_documents, "documents"_a, "separator"_a.none(), "threads"_a, "narrow"_a)
        .def("find_special", &Core::find_special)
        .def("find", &Core::find)
        .def("token_bytes", &Core::token_bytes)
        .def("decode", &Core::decode);
    module.def("split", [](nb::handle text, std::string_view pattern) {
        const std::string_view all = text_of(text);
        nb::list pieces;
        for (size_t at = 0; at < all.size();) {
            uint32_t end = 0;
            split(pattern_named(pattern), all.data() + at, all.size() - at, &end, 1);
            pieces.append(nb::bytes(all.data() + at, end));
            at += end;
        }
        return pieces;
    }, "text"_a, "pattern"_a, "The pieces of a str or bytes under a named pattern.");
}
