// Training by itself, without Python: any number of threads counts the same words and learns the same merges. Meant for
// ThreadSanitizer too, which the short inputs of fuzz_train.cpp give less to see.
#include <stdlib.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>
#include <random>
#include <string>

#include "fuzz/check.h"
#include "train/corpus.h"
#include "train/train.h"

using namespace llmfast;

namespace {

// Words of few letters, most of them different: pairs in many places, runs, ties, and words beyond 15 bytes.
std::string made_up_text(std::mt19937& random, int words) {
    std::string text;
    for (int i = 0; i < words; ++i) {
        for (unsigned letters = 1 + random() % (random() % 8 ? 9 : 30); letters > 0; --letters) {
            text.push_back("aaabbcde"[random() % 8]);
        }
        text.push_back(' ');
    }
    return text;
}

std::map<std::string, uint64_t> by_bytes(const std::vector<Word>& words) {
    std::map<std::string, uint64_t> counts;
    for (const Word& word : words) counts[std::string(word.bytes)] += word.count;
    LLMFAST_REQUIRE(counts.size() == words.size());
    return counts;
}

using Pairs = std::vector<std::pair<uint32_t, uint32_t>>;

Pairs merges_of(const std::vector<Word>& words, unsigned threads, TieBreak tie_break, uint32_t worth_sharing) {
    TrainOptions options;
    options.merges = 1000;
    options.threads = threads;
    options.tie_break = tie_break;
    options.worth_sharing = worth_sharing;
    std::iota(options.byte_order.begin(), options.byte_order.end(), 0);
    Pairs pairs;
    for (const Merge& merge : learn_merges(words, options)) pairs.emplace_back(merge.left, merge.right);
    LLMFAST_REQUIRE(pairs.size() == options.merges);
    return pairs;
}

// The documents are of 20 kB, so that every thread gets some.
Corpus counted(const std::string& text, unsigned threads) {
    std::vector<std::string_view> documents;
    for (size_t at = 0; at < text.size(); at += 20'000) {
        documents.push_back(std::string_view(text).substr(at, 20'000));
    }
    Corpus corpus(Pattern::gpt2, {}, threads);
    for (int half = 0; half < 2; ++half) {
        const auto middle = documents.begin() + static_cast<ptrdiff_t>(documents.size() / 2);
        corpus.add_documents(half ? std::vector(middle, documents.end()) : std::vector(documents.begin(), middle));
        corpus.words();
    }
    return corpus;
}

// Files are read in blocks of 1 MB. Wherever these are cut, separators that overlap one another, and the text between
// them, are those of the whole text.
void test_cutting_at_separators(std::mt19937& random) {
    const std::vector<std::string> separators = {"<|", "<|a|>", "|>b", "ba<", "\n\n<|a|><|a|>"};
    std::vector<Special> specials;
    for (const std::string& text : separators) specials.push_back({text, 0});
    const Specials find(specials);
    for (const size_t kinds : {size_t{3}, size_t{6}, size_t{8}}) {
        static const char* const kParts[] = {"a", "b", "<|", "<|a|>", "|>", "<", " ", "\n"};
        std::string text;
        while (text.size() < 2'500'000) text += kParts[random() % kinds];
        std::vector<std::string_view> documents;
        for (size_t start = 0; start < text.size();) {
            const Specials::Match match = find.find(text, start, find.every());
            documents.push_back(std::string_view(text).substr(start, match.begin - start));
            start = match.begin + (match.special ? match.special->bytes.size() : 0);
        }
        char path[] = "/tmp/llmfast-test-XXXXXX";
        std::FILE* const file = fdopen(mkstemp(path), "wb");
        std::fwrite(text.data(), 1, text.size(), file);
        std::fclose(file);
        for (const Pattern pattern : {Pattern::gpt2, Pattern::none}) {
            Corpus expected(pattern, {}, 1), from_file(pattern, separators, 2);
            expected.add_documents(documents);
            from_file.add_file(path, nullptr);
            LLMFAST_REQUIRE(by_bytes(from_file.words()) == by_bytes(expected.words()));
        }
        std::remove(path);
    }
}

}  // namespace

int main() {
    std::mt19937 random(0);
    test_cutting_at_separators(random);
    const std::string text = made_up_text(random, 60'000);
    Corpus alone = counted(text, 1);
    const std::vector<Word> words = alone.words();
    for (unsigned threads : {2, 3, 5}) {
        Corpus shared = counted(text, threads);
        const std::vector<Word> theirs = shared.words();
        LLMFAST_REQUIRE(by_bytes(theirs) == by_bytes(words));
        for (const TieBreak tie_break : {TieBreak::greatest_bytes, TieBreak::smallest_ids}) {
            const Pairs expected = merges_of(words, 1, tie_break, 2048);
            for (uint32_t worth_sharing : {2048, 100'000'000, 50}) {
                LLMFAST_REQUIRE(merges_of(theirs, threads, tie_break, worth_sharing) == expected);
            }
        }
    }
    std::puts("ok");
}
