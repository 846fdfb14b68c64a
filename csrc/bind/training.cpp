// Python bindings of corpus.h, train.h and derive_merges.h: `_bpe.Corpus` and `_bpe.derive_merges`.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "bind/gil.h"
#include "bind/module.h"
#include "bind/text.h"
#include "bind/vocabulary.h"
#include "merge/derive_merges.h"
#include "train/corpus.h"
#include "train/train.h"

namespace nb = nanobind;

using namespace llmfast;

namespace {

// A corpus counts for one call at a time: a second one, on another thread or by the progress function of the first, is
// refused.
struct SharedCorpus : Corpus {
    using Corpus::Corpus;
    std::atomic<bool> in_use{false};
};

class Use {
  public:
    explicit Use(SharedCorpus& corpus) : in_use_(corpus.in_use) {
        if (in_use_.exchange(true)) throw std::runtime_error("this Corpus is in use by another call");
    }
    ~Use() { in_use_ = false; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

  private:
    std::atomic<bool>& in_use_;
};

// A progress function that takes the GIL for the call. What `call` raises ends the work.
template <typename Count>
std::function<void(Count)> progress_of(const nb::object& call, WithoutGil& released) {
    if (call.is_none()) return nullptr;
    return [call = nb::handle(call), &released](Count done) {
        released.with_gil([&] { call_python(call, nb::int_(done)); });
    };
}

// A str or a bytes object.
std::string_view document_of(nb::handle document, nb::object& owner) {
    return PyUnicode_Check(document.ptr()) ? utf8_of(document, owner) : bytes_of(document, "a document");
}

void add_documents(SharedCorpus& corpus, nb::handle documents) {
    std::vector<nb::object> owners;
    const std::vector<std::string_view> texts = texts_of(documents, "documents", owners, document_of);
    const Use use(corpus);
    const WithoutGil released;
    corpus.add_documents(texts);
}

void add_file(SharedCorpus& corpus, const std::string& path, const nb::object& progress) {
    const Use use(corpus);
    WithoutGil released;
    corpus.add_file(path, progress_of<uint64_t>(progress, released));
}

void add_words(SharedCorpus& corpus, const nb::dict& counts) {
    const Use use(corpus);
    SignalCounter counter;
    for (const nb::handle item : items_of(counts)) {
        counter.add(16);
        const nb::handle word = PyTuple_GET_ITEM(item.ptr(), 0), count = PyTuple_GET_ITEM(item.ptr(), 1);
        corpus.add_word(bytes_of(word, "a word"), nb::cast<uint64_t>(count));
    }
}

// [(left, right)] for every merge.
nb::list learn(SharedCorpus& corpus, size_t merges, uint64_t min_frequency, TieBreak tie_break,
               const nb::bytes& byte_order, const nb::object& progress) {
    const Use use(corpus);
    TrainOptions options;
    options.merges = merges;
    options.min_frequency = std::max<uint64_t>(min_frequency, 1);
    options.tie_break = tie_break;
    options.threads = corpus.threads();
    if (byte_order.size() != 256) throw std::invalid_argument("byte_order must have 256 bytes");
    std::copy_n(static_cast<const uint8_t*>(byte_order.data()), 256, options.byte_order.begin());

    std::vector<Merge> learned;
    {
        WithoutGil released;
        options.progress = progress_of<size_t>(progress, released);
        learned = learn_merges(corpus.words(), options);
    }
    nb::list list;
    SignalCounter counter;
    for (const Merge& merge : learned) {
        counter.add(16);
        list.append(nb::make_tuple(merge.left, merge.right));
    }
    return list;
}

nb::list words(SharedCorpus& corpus) {
    const Use use(corpus);
    std::vector<Word> all;
    {
        const WithoutGil released;
        all = corpus.words();
    }
    nb::list list;
    SignalCounter counter;
    for (const Word& word : all) {
        counter.add(16);
        list.append(nb::make_tuple(nb::bytes(word.bytes.data(), word.bytes.size()), word.count));
    }
    return list;
}

// [(id, parts)] for every token of more than one byte, in the order of ids.
nb::list derive(nb::handle ranks) {
    const Tokens given(ranks);
    std::vector<Parts> parts;
    std::vector<std::string_view> tokens;
    std::vector<uint32_t> ids;
    {
        const WithoutGil released;
        std::vector<std::pair<uint32_t, std::string_view>> by_rank;
        for (size_t i = 0; i < given.ids.size(); ++i) by_rank.emplace_back(given.ids[i], given.bytes[i]);
        sort_with_checks(by_rank.begin(), by_rank.end(),
                         [](const auto& a, const auto& b) { return a.first < b.first; });
        for (const auto& [rank, token] : by_rank) {
            ids.push_back(rank);
            tokens.push_back(token);
        }
        parts = derive_merges(tokens, ids);
    }
    nb::list list;
    SignalCounter counter;
    for (size_t i = 0; i < parts.size(); ++i) {
        counter.add(16 + parts[i].size());
        if (tokens[i].size() > 1) list.append(nb::make_tuple(ids[i], parts[i]));
    }
    return list;
}

}  // namespace

void bind_training(nb::module_& m) {
    nb::enum_<TieBreak>(m, "TieBreak")
        .value("greatest_bytes", TieBreak::greatest_bytes)
        .value("smallest_ids", TieBreak::smallest_ids);

    m.def("derive_merges", &derive, nb::arg("ranks").none());

    nb::class_<SharedCorpus>(m, "Corpus", "Counts the words of documents and files, and learns merges from the counts.")
        .def(
            "__init__",
            [](SharedCorpus* self, std::string_view pattern, const nb::list& separators, unsigned threads) {
                std::vector<std::string> owned;
                for (nb::handle separator : separators) owned.emplace_back(bytes_of(separator, "a separator"));
                new (self) SharedCorpus(pattern_named(pattern), std::move(owned), threads);
            },
            nb::arg("pattern"), nb::arg("separators"), nb::arg("threads"))
        .def("add_documents", &add_documents, nb::arg("documents").none())
        .def("add_file", &add_file, nb::arg("path"), nb::arg("progress").none())
        .def("add_words", &add_words, nb::arg("counts"))
        .def("words", &words)
        .def_prop_ro("bytes_read",
                     [](SharedCorpus& corpus) {
                         const Use use(corpus);
                         return corpus.bytes_read();
                     })
        .def("learn_merges", &learn, nb::arg("merges"), nb::arg("min_frequency"), nb::arg("tie_break"),
             nb::arg("byte_order"), nb::arg("progress").none());
}
