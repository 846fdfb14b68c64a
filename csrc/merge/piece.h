// A piece of text while it is merged.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmfast {

// A piece as parts, at least one of them; merging changes both.
struct Piece {
    uint32_t* ids;
    size_t count;
};

// Beside the id of a part: no token spans the boundary before this part.
constexpr uint32_t kCut = 1u << 31;

}  // namespace llmfast
