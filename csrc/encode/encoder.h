// From text to token ids: splits the text into pieces, looks each up in a cache, and merges those that are not cached.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "encode/long_piece_cache.h"
#include "encode/short_piece_cache.h"
#include "merge/merge.h"
#include "merge/pair_table.h"
#include "pretokenize/piece_limit.h"
#include "pretokenize/pretokenize.h"
#include "system/buffer.h"
#include "vocabulary/vocabulary.h"

namespace llmfast {

// Memory is bounded, whatever is encoded: about 70 bytes per token of the vocabulary, the first cache of short pieces
// (16 MB for gpt2 and cl100k_base, 32 MB for o200k_base, 4 MB for small vocabularies), the second, which takes pieces
// when the first is full (64 MB, 16 MB for small vocabularies), the cache of long pieces (34 MB), and the ids of the
// current text. Of the second and of long pieces only the memory that is used is touched. Full caches take no more
// pieces.
//
// The bytes of a text may change while it is encoded, where a caller's other threads write to it. Its ids are then
// unspecified, but later texts are encoded right: what enters a cache is computed from the encoder's own copy of a
// piece.
class Encoder {
  public:
    Encoder(Vocabulary vocabulary, Pattern pattern);

    const Vocabulary& vocabulary() const { return vocabulary_; }
    Pattern pattern() const { return pattern_; }

    // Appends the ids of `text`; special tokens in it are plain text. Returns how many tokens the last piece has.
    // Safe from many threads at once. Throws std::length_error for a piece of more than kLongestPiece bytes.
    size_t encode(std::string_view text, IdBuffer& ids) const;

    // How many ids `text` has; takes memory for a few pieces only.
    size_t count(std::string_view text) const;

    // Appends the ids of a piece that is not to be split. `look_up`: a piece that is a token is that token, even if
    // merging would not arrive there.
    size_t encode_piece(std::string_view piece, IdBuffer& ids, bool look_up = true) const;

    // How many ids so many bytes usually have at most. Reserving memory that is not written costs nothing; growing
    // does.
    static size_t usual_ids(size_t bytes) { return bytes / 4 * 3; }

  private:
    struct Batch;
    struct Unknowns;

    void insert_tokens();
    void encode_some(std::string_view& text, Batch& batch, IdBuffer& ids, Unknowns& unknowns) const;
    void encode_some_avx2(std::string_view& text, Batch& batch, IdBuffer& ids, Unknowns& unknowns) const;
    void encode_next(std::string_view& text, Batch& batch, IdBuffer& ids, Unknowns& unknowns) const;
    static bool is_time_to_merge(const Unknowns& unknowns);
    void fill(Batch& batch, std::string_view text) const;
    void encode_batch(const char* text, const Batch& batch, IdBuffer& ids, Unknowns& unknowns) const;
    size_t look_up(std::string_view piece, const Key& key, size_t index, uint32_t* out) const;
    size_t add_unknown(std::string_view piece, const Key& key, size_t at, uint32_t* out, Unknowns& unknowns) const;
    size_t copy(const ShortPieceCache::Slot& slot, uint32_t* out) const;
    void merge_pending(Unknowns& unknowns, IdBuffer& ids) const;
    void insert(std::string_view piece, const Key& key, const Piece& merged) const;

    Vocabulary vocabulary_;
    std::optional<PairTable> pairs_;
    mutable ShortPieceCache short_pieces_;       // up to 15 bytes
    mutable ShortPieceCache more_short_pieces_;  // of as many, when the first cache is full
    mutable LongPieceCache long_pieces_;         // pieces of more bytes, and the ids of short ones that have many
    bool has_all_tokens_ = true;                 // whether the cache of short pieces has all short tokens
    Pattern pattern_;
};

}  // namespace llmfast
