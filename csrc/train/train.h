// Learns byte-pair-encoding merges from counted words.
//
// The definition (tests/tokenizer holds it as plain Python): write every word as its bytes; then, again and again,
// replace the most frequent pair of adjacent tokens by a new token, left to right inside each word. Frequencies weigh
// each word by its count. What follows computes exactly that, touching only the places that change.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace llmfast {

// A distinct pretoken and how often the corpus has it. The bytes belong to whoever counted them.
struct Word {
    std::string_view bytes;
    std::uint64_t count;
};

// Which pair goes first among equally frequent ones.
enum class TieBreak {
    greatest_bytes,  // lexicographically greatest (left bytes, right bytes)
    smallest_ids,    // smallest (left id, right id)
};

struct TrainOptions {
    std::size_t merges = 0;             // learn at most so many
    std::uint64_t min_frequency = 1;    // stop before a pair rarer than this
    TieBreak tie_break = TieBreak::greatest_bytes;
    std::array<std::uint8_t, 256> byte_order{};  // byte_order[id] is the byte that token `id` < 256 stands for
    unsigned threads = 1;
    std::uint32_t worth_sharing = 2048;  // threads share the places of a pair that has so many
    std::function<void(std::size_t merges_done)> progress;  // called now and then; may throw to stop
};

// Merge number i joins two earlier tokens into token 256 + i.
struct Merge {
    std::uint32_t left, right;
    std::uint64_t count;
};

// Fewer merges than asked for come back where the words hold no further pair of min_frequency.
// Throws std::length_error if the distinct words have 2^32 bytes or more, or the tokens were more than 2^24.
std::vector<Merge> learn_merges(const std::vector<Word>& words, const TrainOptions& options);

}  // namespace llmfast
