#include "pretokenize/piece_limit.h"

#include <stdexcept>
#include <string>

namespace llmfast {

void throw_piece_too_long(size_t bytes) {
    throw std::length_error(
        "a piece of " + std::to_string(bytes) +
        " bytes is too long: between two places where the pattern splits the text there may be at most " +
        std::to_string(kLongestPiece) + " bytes; split the text first");
}

}  // namespace llmfast
