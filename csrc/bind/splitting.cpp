// Functions of `llmfast._bpe` on splitting patterns, rank files and texts to search for.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bind/gil.h"
#include "bind/module.h"
#include "bind/text.h"
#include "pretokenize/pretokenize.h"
#include "vocabulary/rank_file.h"
#include "vocabulary/specials.h"
#include "vocabulary/vocabulary.h"

namespace nb = nanobind;

using namespace llmfast;

Pattern pattern_named(std::string_view name) {
    static constexpr std::pair<std::string_view, Pattern> kNames[] = {
        {"none", Pattern::none},        {"gpt2", Pattern::gpt2},   {"cl100k", Pattern::cl100k},
        {"llama3", Pattern::llama3},    {"qwen2", Pattern::qwen2}, {"o200k", Pattern::o200k},
        {"deepseek", Pattern::deepseek}};
    for (const auto& [known, pattern] : kNames) {
        if (name == known) return pattern;
    }
    throw nb::value_error(("no pattern is named '" + std::string(name) + "'").c_str());
}

namespace {

// The tokens of a tiktoken rank file: lines of base64 and a number. ValueError for a line that is anything else, or
// that repeats a token.
nb::dict parse_ranks(nb::handle contents) {
    nb::dict ranks;
    size_t tokens = 0;
    SignalCounter counter;
    for_each_rank(bytes_of(contents, "contents"), [&](std::string_view token, uint32_t rank, size_t line) {
        counter.add(16 + token.size());
        const nb::bytes key(token.data(), token.size());
        const nb::int_ value(rank);
        if (PyDict_SetItem(ranks.ptr(), key.ptr(), value.ptr()) < 0) throw nb::python_error();
        if (nb::len(ranks) != ++tokens) {
            throw std::invalid_argument("line " + std::to_string(line) + " repeats token " + printable(token));
        }
    });
    return ranks;
}

// The pieces of a text as bytes objects.
nb::list split_text(nb::handle text, std::string_view name) {
    constexpr size_t kAtOnce = 256;
    const Pattern pattern = pattern_named(name);
    nb::object owner;
    const std::string_view all = text_of(text, owner);
    nb::list pieces;
    uint32_t ends[kAtOnce];
    for (size_t at = 0; at < all.size();) {
        size_t count = 0;
        if (all.size() - at < kAtOnce) {
            count = split(pattern, all.data() + at, all.size() - at, ends, kAtOnce);
        } else {
            const WithoutGil released;
            count = split(pattern, all.data() + at, all.size() - at, ends, kAtOnce);
        }
        check_signals();
        uint32_t start = 0;
        for (size_t i = 0; i < count; ++i) {
            pieces.append(nb::bytes(all.data() + at + start, ends[i] - start));
            start = ends[i];
        }
        at += start;
    }
    return pieces;
}

// How many pieces a text has.
size_t count_pieces(nb::handle text, std::string_view name) {
    constexpr size_t kAtOnce = 256;
    const Pattern pattern = pattern_named(name);
    nb::object owner;
    const std::string_view all = text_of(text, owner);
    const WithoutGil released;
    uint32_t ends[kAtOnce];
    size_t count = 0;
    for (size_t at = 0; at < all.size();) {
        check_interrupt();
        const size_t some = split(pattern, all.data() + at, all.size() - at, ends, kAtOnce);
        count += some;
        at += ends[some - 1];
    }
    return count;
}

// A buffer is not copied: where its bytes change meanwhile, the result is one of the offsets all the same.
size_t boundary(nb::handle text, std::string_view name, size_t start) {
    const Pattern pattern = pattern_named(name);
    nb::object owner;
    const std::string_view all = PyUnicode_Check(text.ptr()) ? utf8_of(text, owner) : buffer_of(text, owner);
    const WithoutGil released;
    return certain_boundary(pattern, all.data(), all.size(), start);
}

// Finds the first of several texts.
class Finder {
  public:
    explicit Finder(nb::handle texts) : specials_(of(texts)) {}

    // The text that occurs first, and the longest of those that occur at the same place; None if none occurs.
    nb::object first_in(nb::handle text) const {
        nb::object owner;
        const std::string_view utf8 = utf8_of(text, owner);
        const Special* found = nullptr;
        {
            const WithoutGil released;
            found = specials_.find(utf8, 0, specials_.every()).special;
        }
        return found ? nb::cast(std::string_view(found->bytes)) : nb::none();
    }

  private:
    static std::vector<Special> of(nb::handle texts) {
        std::vector<Special> all;
        SignalCounter counter;
        for (nb::handle text : nb::iter(texts)) {
            counter.add(16);
            nb::object owner;
            all.push_back({std::string(utf8_of(text, owner)), 0});
        }
        return all;
    }

    Specials specials_;
};

}  // namespace

void bind_splitting(nb::module_& module) {
    module.def("parse_ranks", &parse_ranks, nb::arg("contents").none(),
               "The dict of bytes to int of a tiktoken rank file.");
    module.def("split", &split_text, nb::arg("text").none(), nb::arg("pattern"),
               "The pieces of a str or bytes under a named pattern.");
    module.def("count_pieces", &count_pieces, nb::arg("text").none(), nb::arg("pattern"),
               "How many pieces a str or bytes has under a named pattern.");
    module.def(
        "certain_boundary", &boundary, nb::arg("text").none(), nb::arg("pattern"), nb::arg("start"),
        "The first offset in the UTF-8, at or after `start` > 0, where it can be cut without changing its pieces.");
    nb::class_<Finder>(module, "Finder", "Finds the first, and there the longest, of several texts that are not empty.")
        .def(nb::init<nb::handle>(), nb::arg("texts").none())
        .def("first_in", &Finder::first_in, nb::arg("text").none());
}
