// The words that training works on, cut into tokens that grow.

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

using Token = std::uint32_t;
using Position = std::uint32_t;

// All words behind one another, one cell a byte. A token is written at its first and at its last byte, so both
// neighbors of a token are found without links: the right one starts at the next byte, the left one ends at the
// byte before. kBorder stands before, between and behind words.
//
// A cell has 24 bits for the token and 8 for the weight of the word. Heavy words, for which that is too little, come
// first and have their weights in an array of their own: cells are what training waits for, so the fewer bytes the
// better.
class Symbols {
public:
    static constexpr Token kBorder = 0xFFFFFF;
    static constexpr Token kMostTokens = 0xFFFFFE;

    Symbols(const std::vector<Word>& words, const std::array<std::uint8_t, 256>& byte_order, Team& team) {
        std::array<Token, 256> id_of_byte{};
        for (Token id = 0; id < 256; ++id) id_of_byte[byte_order[id]] = id;

        // Where the shares of the words start, first the heavy words of all, then the light ones of all.
        const auto share = [&](std::size_t part) { return words.size() * part / team.size(); };
        std::vector<std::uint64_t> starts[2];
        std::uint64_t size = 0;
        for (int light = 0; light < 2; ++light) {
            for (std::size_t part = 0; part < team.size(); ++part) {
                starts[light].push_back(size);
                for (std::size_t i = share(part); i < share(part + 1); ++i) {
                    if (is_light(words[i]) == light) size += words[i].bytes.size() + 1;
                }
            }
            if (!light) n_heavy_ = size;
        }
        if (size >= 0xFFFFFFFF) throw std::length_error("the distinct words have 2^32 bytes or more");

        cells_.room(size + 1)[size] = cell(kBorder, 0);
        cells_.grow(size + 1);
        weights_.room(n_heavy_);
        weights_.grow(n_heavy_);
        team.run(team.size(), [&](std::size_t part, std::size_t) {
            std::uint64_t at[2] = {starts[0][part], starts[1][part]};
            for (std::size_t i = share(part); i < share(part + 1); ++i) {
                if (i % 1024 == 0) check_interrupt();
                const bool light = is_light(words[i]);
                std::uint32_t* next = cells_.data() + at[light];
                *next++ = cell(kBorder, 0);
                const auto weight = static_cast<std::uint32_t>(light ? words[i].count : 0);
                for (char byte : words[i].bytes) *next++ = cell(id_of_byte[static_cast<std::uint8_t>(byte)], weight);
                const std::size_t length = words[i].bytes.size() + 1;
                if (!light) std::fill_n(weights_.data() + at[light], length, words[i].count);
                at[light] += length;
            }
        });
    }

    Position size() const { return static_cast<Position>(cells_.size()); }
    Token at(Position p) const { return cells_.data()[p] >> 8; }
    std::uint64_t weight(Position p) const { return p < n_heavy_ ? weights_.data()[p] : cells_.data()[p] & 0xFF; }
    void prefetch(Position p) const { prefetch_line(cells_.data() + p); }

    // The first border at or after `p`; `end` if there is none before it.
    Position border(Position p, Position end) const {
        while (p < end && at(p) != kBorder) ++p;
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
    static std::uint32_t cell(Token token, std::uint32_t weight) { return token << 8 | weight; }
    void set(Position p, Token token) { cells_.data()[p] = cell(token, cells_.data()[p] & 0xFF); }

    Buffer<std::uint32_t> cells_;
    Buffer<std::uint64_t> weights_;  // of the heavy words' cells
    std::uint64_t n_heavy_ = 0;
};

}  // namespace llmfast
