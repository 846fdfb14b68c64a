// Learns byte-pair-encoding merges from counted words.
//
// The definition (tests/tokenizer holds it as plain Python): write every word as its bytes; then, repeatedly
// replace the most frequent pair of adjacent tokens by a new token, left to right inside each word. Frequencies weigh
// each word by its count. What follows computes exactly that, touching only the positions that change.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace llmfast {

// A distinct piece of text and how often the corpus has it. The bytes belong to the WordCounts that counted it.
struct Word {
    std::string_view bytes;
    uint64_t count;
};

// Which of several equally frequent pairs is merged first.
enum class TieBreak {
    greatest_bytes,  // lexicographically greatest (left bytes, right bytes)
    smallest_ids,    // smallest (left id, right id)
};

struct TrainOptions {
    size_t merges = 0;           // at most so many
    uint64_t min_frequency = 1;  // stop before a pair that is rarer
    TieBreak tie_break = TieBreak::greatest_bytes;
    std::array<uint8_t, 256> byte_order{};  // byte_order[id] is the byte that token `id` < 256 stands for
    unsigned threads = 1;
    uint32_t worth_sharing = 2048;                     // threads share a pair with at least so many positions
    std::function<void(size_t merges_done)> progress;  // called from time to time; may throw to stop
};

// Merge number i joins two earlier tokens into token 256 + i.
struct Merge {
    uint32_t left, right;
    uint64_t count;
};

// Returns fewer merges than asked for if the words have no further pair of min_frequency.
// Throws std::length_error if the distinct words have 2^32 bytes or more, or the tokens were more than 2^24.
std::vector<Merge> learn_merges(const std::vector<Word>& words, const TrainOptions& options);

}  // namespace llmfast
