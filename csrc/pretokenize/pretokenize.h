// Splits text into the pieces that are merged separately, exactly as the published regular expressions do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmfast {

enum class Pattern : uint8_t {
    none,      // the whole text is one piece (minbpe's basic form)
    gpt2,      // GPT-2, r50k, p50k
    cl100k,    // tiktoken's cl100k_base: white space that ends the text is one piece
    llama3,    // cl100k as first published, as in Llama 3
    qwen2,     // llama3 with digits one by one
    o200k,     // GPT-4o
    deepseek,  // DeepSeek V3: three splits in sequence
};

// Splits `text`, which starts a piece and ends with the whole text, and writes where pieces end, as offsets from
// `text`, in increasing order; at most `capacity` of them (> 0). Returns how many were written: 0 only for empty text.
// The rest of a long text is split by calling again from the last end. Bytes that are not UTF-8 count as
// punctuation. Throws std::length_error for a piece of 4 GiB or more, and under Pattern::none for one of more than
// kLongestPiece bytes (piece_limit.h); the encoder and the trainer refuse every piece that is longer than that.
size_t split(Pattern pattern, const char* text, size_t length, uint32_t* ends, size_t capacity);

// A position > 0 and <= length where `text` may be cut in two whose pieces, side by side, are those of the whole; for
// every pattern but `none`, which has only `length` itself. It is the first one at or after `from`.
size_t certain_boundary(Pattern pattern, const char* text, size_t length, size_t from);

}  // namespace llmfast
