// The Python face of corpus.h and train.h: `_bpe.Corpus`.

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "bindings.h"
#include "corpus.h"
#include "derive_merges.h"
#include "train.h"

namespace nb = nanobind;

using namespace llmfast;

namespace {

// A progress function that takes the GIL back for the call. KeyboardInterrupt and what `call` raises end the work.
template <class Count>
std::function<void(Count)> progress_of(const nb::object& call) {
    return [call = nb::handle(call)](Count done) {
        nb::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
        if (!call.is_none()) call(done);
    };
}

std::string_view bytes_of(nb::handle bytes) {
    char* data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) != 0) throw nb::python_error();
    return {data, static_cast<std::size_t>(size)};
}

// The UTF-8 of a str, or a bytes object as it is. Lone surrogates become U+FFFD, as they do when text is encoded.
// What had to be made for that is appended to `owned`.
std::string_view text_of(nb::handle document, std::vector<nb::object>& owned) {
    if (!nb::isinstance<nb::str>(document)) return bytes_of(document);
    Py_ssize_t size;
    if (const char* data = PyUnicode_AsUTF8AndSize(document.ptr(), &size)) {
        return {data, static_cast<std::size_t>(size)};
    }
    PyErr_Clear();
    owned.push_back(document.attr("encode")("utf-16", "surrogatepass").attr("decode")("utf-16", "replace"));
    return text_of(owned.back(), owned);
}

void add_documents(Corpus& corpus, const nb::list& documents) {
    std::vector<nb::object> owned;
    std::vector<std::string_view> texts;
    texts.reserve(documents.size());
    for (nb::handle document : documents) texts.push_back(text_of(document, owned));
    nb::gil_scoped_release released;
    corpus.add_documents(texts);
}

void add_file(Corpus& corpus, const std::string& path, const nb::object& progress) {
    const auto report = progress_of<std::uint64_t>(progress);
    nb::gil_scoped_release released;
    corpus.add_file(path, report);
}

void add_words(Corpus& corpus, const nb::dict& counts) {
    for (auto [word, count] : counts) corpus.add_word(bytes_of(word), nb::cast<std::uint64_t>(count));
}

std::vector<std::pair<std::uint32_t, std::uint32_t>> learn(Corpus& corpus, std::size_t merges,
                                                           std::uint64_t min_frequency, TieBreak tie_break,
                                                           const nb::bytes& byte_order, const nb::object& progress) {
    TrainOptions options;
    options.merges = merges;
    options.min_frequency = std::max<std::uint64_t>(min_frequency, 1);
    options.tie_break = tie_break;
    options.threads = corpus.threads();
    if (byte_order.size() != 256) throw std::invalid_argument("byte_order must have 256 bytes");
    std::copy_n(static_cast<const std::uint8_t*>(byte_order.data()), 256, options.byte_order.begin());
    options.progress = progress_of<std::size_t>(progress);

    nb::gil_scoped_release released;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> pairs;
    for (const Merge& merge : learn_merges(corpus.words(), options)) pairs.emplace_back(merge.left, merge.right);
    return pairs;
}

nb::list words(Corpus& corpus) {
    nb::list list;
    for (const Word& word : corpus.words()) {
        list.append(nb::make_tuple(nb::bytes(word.bytes.data(), word.bytes.size()), word.count));
    }
    return list;
}

// [(token, parts)] for every token of more than one byte, in the order of ranks.
nb::list derive(const nb::dict& ranks) {
    std::vector<std::pair<std::uint32_t, std::string_view>> by_rank;
    for (auto [token, rank] : ranks) by_rank.emplace_back(nb::cast<std::uint32_t>(rank), bytes_of(token));
    std::sort(by_rank.begin(), by_rank.end());
    std::vector<std::string_view> tokens;
    std::vector<std::uint32_t> ids;
    for (const auto& [rank, token] : by_rank) {
        ids.push_back(rank);
        tokens.push_back(token);
    }
    nb::list list;
    const std::vector<Parts> parts = derive_merges(tokens, ids);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        if (tokens[i].size() > 1) list.append(nb::make_tuple(ids[i], parts[i]));
    }
    return list;
}

}  // namespace

void bind_training(nb::module_& m) {
    nb::enum_<TieBreak>(m, "TieBreak")
        .value("greatest_bytes", TieBreak::greatest_bytes)
        .value("smallest_ids", TieBreak::smallest_ids);

    m.def("derive_merges", &derive, nb::arg("ranks"));

    nb::class_<Corpus>(m, "Corpus", "Counts the words of documents and files, and learns merges from the counts.")
        .def("__init__",
             [](Corpus* self, std::string_view pattern, const nb::list& separators, unsigned threads) {
                 std::vector<std::string> owned;
                 for (nb::handle separator : separators) owned.emplace_back(bytes_of(separator));
                 new (self) Corpus(pattern_named(pattern), std::move(owned), threads);
             },
             nb::arg("pattern"), nb::arg("separators"), nb::arg("threads"))
        .def("add_documents", &add_documents, nb::arg("documents"))
        .def("add_file", &add_file, nb::arg("path"), nb::arg("progress").none())
        .def("add_words", &add_words, nb::arg("counts"))
        .def("words", &words)
        .def_prop_ro("bytes_read", &Corpus::bytes_read)
        .def("learn_merges", &learn, nb::arg("merges"), nb::arg("min_frequency"), nb::arg("tie_break"),
             nb::arg("byte_order"), nb::arg("progress").none());
}
