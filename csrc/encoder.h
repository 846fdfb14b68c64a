// Text to token ids: split, look each piece up, merge the pieces that are not known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "growing.h"
#include "merge.h"
#include "pair_table.h"
#include "piece_log.h"
#include "piece_table.h"
#include "pretokenize.h"
#include "vocabulary.h"

namespace llmfast {

// Memory is bounded, whatever is encoded: about 70 bytes a token of the vocabulary, the table of short pieces (16 MB for
// gpt2 and cl100k_base, 32 MB for o200k_base, 4 MB for small vocabularies), the log of long pieces (34 MB, of which
// only what is used is touched), and the ids of the text at hand. What is full learns no more.
class Encoder {
  public:
    Encoder(Vocabulary vocabulary, Pattern pattern);

    const Vocabulary& vocabulary() const { return vocabulary_; }
    Pattern pattern() const { return pattern_; }

    // Appends the ids of `text`; special tokens in it are plain text. Returns how many tokens the last piece has.
    // Safe from many threads at once.
    size_t encode(std::string_view text, IdBuffer& ids) const;

    // How many ids `text` has; takes memory for a few pieces only.
    size_t count(std::string_view text) const;

    // Appends the ids of a piece that is not to be split. `look_up`: a piece that is a token is that token, even if
    // merging would not arrive there.
    size_t encode_piece(std::string_view piece, IdBuffer& ids, bool look_up = true) const;

    // Room that the ids of so many bytes seldom pass: memory that is not written costs nothing, but growing does.
    static size_t usual_ids(size_t bytes) { return bytes / 4 * 3; }

  private:
    struct Batch;
    struct Unknowns;

    void learn_tokens();
    void encode_some(std::string_view& text, Batch& batch, IdBuffer& ids, Unknowns& unknowns) const;
    void encode_some_newer(std::string_view& text, Batch& batch, IdBuffer& ids, Unknowns& unknowns) const;
    void fill(Batch& batch, std::string_view text) const;
    void encode_batch(const char* text, const Batch& batch, IdBuffer& ids, Unknowns& unknowns) const;
    size_t look_up(std::string_view piece, const Key& key, size_t index, uint32_t* out) const;
    size_t copy(const ShortPieces::Slot& slot, uint32_t* out) const;
    void settle(Unknowns& unknowns, IdBuffer& ids) const;
    void learn(std::string_view piece, const Piece& merged) const;

    Vocabulary vocabulary_;
    std::optional<PairTable> pairs_;
    mutable ShortPieces short_pieces_;  // up to 15 bytes
    mutable PieceLog log_;              // pieces of more bytes, and the ids of short ones that have many
    Pattern pattern_;
};

}  // namespace llmfast
