// The words that training works on, as sequences of tokens that merging makes longer.

#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "system/buffer.h"
#include "system/interrupt.h"
#include "system/parallel.h"
#include "system/prefetch.h"
#include "train/train.h"

namespace llmfast {

using Token = uint32_t;
using Position = uint32_t;

// All words in one array, with one cell per byte. A token is written in the cells of its first and its last byte, so
// that both neighbors of a token are found without links: the right one starts at the next byte, the left one ends at
// the byte before. There is a kBorder before, between and after words.
//
// A cell has 24 bits for the token and 8 for the weight of the word. Heavy words, whose weight needs more bits, come
// first and have their weights in an array of their own: training is limited by cache misses on cells, so they should
// be small.
class Symbols {
  public:
    static constexpr Token kBorder = 0xFFFFFF;
    static constexpr Token kMostTokens = 0xFFFFFE;

    Symbols(const std::vector<Word>& words, const std::array<uint8_t, 256>& byte_order, Team& team) {
        std::array<Token, 256> id_of_byte{};
        for (Token id = 0; id < 256; ++id) id_of_byte[byte_order[id]] = id;

        // Where each thread's share of the words starts: first the heavy words of all shares, then the light ones.
        const auto share = [&](size_t part) { return words.size() * part / team.size(); };
        std::vector<uint64_t> starts[2];
        uint64_t size = 0;
        InterruptCounter words_looked_at;
        for (int light = 0; light < 2; ++light) {
            for (size_t part = 0; part < team.size(); ++part) {
                starts[light].push_back(size);
                for (size_t i = share(part); i < share(part + 1); ++i) {
                    words_looked_at.add(1);
                    if (is_light(words[i]) == light) size += words[i].bytes.size() + 1;
                }
            }
            if (!light) n_heavy_ = size;
        }
        if (size >= 0xFFFFFFFF) throw std::length_error("the distinct words have 2^32 bytes or more");

        cells_.prepare(size + 1)[size] = cell(kBorder, 0);
        cells_.commit(size + 1);
        weights_.prepare(n_heavy_);
        weights_.commit(n_heavy_);
        team.run(team.size(), [&](size_t part, size_t) {
            uint64_t at[2] = {starts[0][part], starts[1][part]};
            InterruptCounter counter;
            for (size_t i = share(part); i < share(part + 1); ++i) {
                counter.add(words[i].bytes.size());
                const bool light = is_light(words[i]);
                uint32_t* next = cells_.data() + at[light];
                *next++ = cell(kBorder, 0);
                const auto weight = static_cast<uint32_t>(light ? words[i].count : 0);
                in_windows(words[i].bytes.size(), [&](size_t begin, size_t end) {
                    for (const char byte : words[i].bytes.substr(begin, end - begin)) {
                        *next++ = cell(id_of_byte[static_cast<uint8_t>(byte)], weight);
                    }
                });
                const size_t length = words[i].bytes.size() + 1;
                if (!light) {
                    uint64_t* weights = weights_.data() + at[light];
                    in_windows(length, [&](size_t begin, size_t end) {
                        weights = std::fill_n(weights, end - begin, words[i].count);
                    });
                }
                at[light] += length;
            }
        });
    }

    Position size() const { return static_cast<Position>(cells_.size()); }
    Token at(Position p) const { return cells_.data()[p] >> 8; }
    uint64_t weight(Position p) const { return p < n_heavy_ ? weights_.data()[p] : cells_.data()[p] & 0xFF; }
    void prefetch(Position p) const { prefetch_line(cells_.data() + p); }

    // The first border at or after `p`; `end` if there is none before it.
    Position border(Position p, Position end) const {
        InterruptCounter counter;
        for (; p < end && at(p) != kBorder; ++p) counter.add(1);
        return p;
    }

    // Replaces the tokens at `p` and `middle` by one that ends before `end`.
    void join(Position p, Position middle, Position end, Token token) {
        set(middle - 1, kInside);
        set(middle, kInside);
        set(p, token);
        set(end - 1, token);
    }

  private:
    static constexpr Token kInside = 0xFFFFFE;  // a byte inside a token, neither its first nor its last

    static bool is_light(const Word& word) { return word.count < 256; }
    static uint32_t cell(Token token, uint32_t weight) { return token << 8 | weight; }
    void set(Position p, Token token) { cells_.data()[p] = cell(token, cells_.data()[p] & 0xFF); }

    Buffer<uint32_t> cells_;
    Buffer<uint64_t> weights_;  // of the heavy words' cells
    uint64_t n_heavy_ = 0;
};

}  // namespace llmfast
