// Text to token ids: split, look each piece up, merge the pieces that are not known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "id_buffer.h"
#include "merge.h"
#include "pair_table.h"
#include "piece_table.h"
#include "pretokenize.h"
#include "vocabulary.h"

namespace llmfast {

class Encoder {
  public:
    Encoder(Vocabulary vocabulary, Pattern pattern)
        : vocabulary_(std::move(vocabulary)), pairs_(vocabulary_), pieces_(vocabulary_), pattern_(pattern) {}

    const Vocabulary& vocabulary() const { return vocabulary_; }
    Pattern pattern() const { return pattern_; }

    // Appends the ids of `text`; special tokens in it are plain text. Returns how many tokens the last piece has.
    // Safe from many threads at once.
    size_t encode(std::string_view text, IdBuffer& ids) const;

    // Appends the ids of a piece that is not to be split. `look_up`: a piece that is a token is that token, even if
    // merging would not arrive there.
    size_t encode_piece(std::string_view piece, IdBuffer& ids, bool look_up = true) const;

  private:
    struct Batch;

    size_t encode_batch(const char* text, const char* text_end, const Batch& batch, IdBuffer& ids,
                        MergeScratch& scratch) const;
    size_t encode_unknown(std::string_view piece, uint32_t* out, bool look_up, MergeScratch& scratch) const;

    Vocabulary vocabulary_;
    PairTable pairs_;
    mutable PieceTable pieces_;  // learns
    Pattern pattern_;
};

}  // namespace llmfast
