// Derives the merges that make each token from the ranks of the tokens.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace llmfast {

// How a token is made: the tokens that its bytes have been merged into when its own rank is reached. Two for a token
// that a merge makes, more for one that merging never reaches, which only a whole piece can be.
using Parts = std::vector<uint32_t>;

// The parts of each of `tokens`, whose ranks are `ranks`; one part for single bytes. Takes O(n log n) time for n bytes.
// Throws std::invalid_argument for an empty token and for duplicates.
std::vector<Parts> derive_merges(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ranks);

}  // namespace llmfast
