// Training must be the naive definition, for any words: libFuzzer's entry point; see run_train.sh.
//
// Built with -DLLMFAST_RANDOM_INPUTS it needs no clang: a main function then makes up inputs from a seed.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "train/train.h"

namespace llmfast::fuzz {

using Pair = std::pair<uint32_t, uint32_t>;

// Count all pairs, merge the best one everywhere, start over.
std::vector<Pair> merges_by_definition(const std::vector<Word>& words, const TrainOptions& options) {
    std::vector<std::string> bytes;
    std::vector<uint32_t> id_of(256);
    for (uint32_t id = 0; id < 256; ++id) {
        bytes.emplace_back(1, static_cast<char>(options.byte_order[id]));
        id_of[options.byte_order[id]] = id;
    }
    std::vector<std::vector<uint32_t>> tokens;
    for (const Word& word : words) {
        tokens.emplace_back();
        for (char byte : word.bytes) tokens.back().push_back(id_of[static_cast<uint8_t>(byte)]);
    }
    std::vector<Pair> merges;
    while (merges.size() < options.merges) {
        std::map<Pair, uint64_t> counts;
        for (size_t w = 0; w < words.size(); ++w) {
            for (size_t i = 1; i < tokens[w].size(); ++i) counts[{tokens[w][i - 1], tokens[w][i]}] += words[w].count;
        }
        const std::pair<const Pair, uint64_t>* best = nullptr;
        for (const auto& candidate : counts) {
            if (candidate.second < options.min_frequency) continue;
            bool better = !best || candidate.second > best->second;
            if (best && candidate.second == best->second) {
                const Pair &a = candidate.first, &b = best->first;
                better = options.tie_break == TieBreak::smallest_ids
                             ? a < b
                             : std::pair(bytes[a.first], bytes[a.second]) > std::pair(bytes[b.first], bytes[b.second]);
            }
            if (better) best = &candidate;
        }
        if (!best) break;
        const auto [left, right] = best->first;
        const auto made = static_cast<uint32_t>(bytes.size());
        bytes.push_back(bytes[left] + bytes[right]);
        merges.emplace_back(left, right);
        for (auto& word : tokens) {
            std::vector<uint32_t> merged;
            for (size_t i = 0; i < word.size(); ++i) {
                const bool joins = i + 1 < word.size() && word[i] == left && word[i + 1] == right;
                merged.push_back(joins ? made : word[i]);
                i += joins;
            }
            word = std::move(merged);
        }
    }
    return merges;
}

// The first bytes choose the options; in the rest, bytes up to 15 end a word and are the magnitude of its count.
void check(const uint8_t* data, size_t size) {
    if (size < 3) return;
    TrainOptions options;
    options.merges = data[0] % 64;
    options.min_frequency = 1 + data[1] % 4;
    options.tie_break = data[2] % 2 ? TieBreak::smallest_ids : TieBreak::greatest_bytes;
    options.threads = 1 + data[2] / 2 % 3;
    options.worth_sharing = data[2] / 8;
    std::iota(options.byte_order.begin(), options.byte_order.end(), 0);
    if (data[1] & 128) std::reverse(options.byte_order.begin(), options.byte_order.end());

    std::map<std::string, uint64_t> counts;
    std::string word;
    for (size_t i = 3; i < size; ++i) {
        if (data[i] > 15) {
            word.push_back(static_cast<char>(data[i]));
        } else if (!word.empty()) {
            counts[std::exchange(word, {})] += uint64_t{1} << (data[i] < 8 ? data[i] : data[i] * 2 + 4);
        }
    }
    std::vector<Word> words;
    for (const auto& [bytes, count] : counts) words.push_back({bytes, count});

    std::vector<Pair> learned;
    for (const Merge& merge : learn_merges(words, options)) learned.emplace_back(merge.left, merge.right);
    if (learned != merges_by_definition(words, options)) {
        std::fprintf(stderr, "merges differ from the definition\n");
        std::abort();
    }
}

}  // namespace llmfast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    llmfast::fuzz::check(data, size);
    return 0;
}

#ifdef LLMFAST_RANDOM_INPUTS
int main(int argc, char** argv) {
    std::mt19937 random(argc > 2 ? std::atoi(argv[2]) : 0);
    for (int round = argc > 1 ? std::atoi(argv[1]) : 1000; round > 0; --round) {
        std::vector<uint8_t> data(3 + random() % 300);
        const unsigned letters = 1 + random() % 6, ends = 2 + random() % 15;
        for (uint8_t& byte : data) byte = random() % ends ? 'a' + random() % letters : random() % 16;
        for (int i = 0; i < 3; ++i) data[i] = static_cast<uint8_t>(random());
        llmfast::fuzz::check(data.data(), data.size());
    }
}
#endif
