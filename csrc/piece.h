// A piece of text on its way to ids.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmfast {

// The longest piece, in bytes, that is merged: parts are counted in 32 bits, and merging takes about 20 bytes per byte.
constexpr size_t kLongestPiece = size_t{1} << 30;

// Throws std::length_error, which states the limit.
[[noreturn]] void throw_piece_too_long(size_t bytes);

// A piece as parts, at least one of them; merging changes both.
struct Piece {
    uint32_t* ids;
    size_t count;
};

// Beside the id of a part: no token spans the boundary before this part.
constexpr uint32_t kCut = 1u << 31;

}  // namespace llmfast
