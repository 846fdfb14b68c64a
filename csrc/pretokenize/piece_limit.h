// How long one piece of text may be.
#pragma once

#include <cstddef>

namespace llmfast {

// The longest piece, in bytes, that is merged: parts are counted in 32 bits, and merging takes about 20 bytes per byte.
constexpr size_t kLongestPiece = size_t{1} << 30;

// Throws std::length_error, which states the limit.
[[noreturn]] void throw_piece_too_long(size_t bytes);

}  // namespace llmfast
