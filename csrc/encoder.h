// Text to token ids: split, look each piece up, merge the pieces that are no token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "merge.h"
#include "pretokenize.h"
#include "vocabulary.h"

namespace llmfast {

class Encoder {
  public:
    Encoder(Vocabulary vocabulary, Pattern pattern) : vocabulary_(std::move(vocabulary)), pattern_(pattern) {}

    const Vocabulary& vocabulary() const { return vocabulary_; }
    Pattern pattern() const { return pattern_; }

    // Appends the ids of `text`; special tokens in it are plain text. Returns how many tokens the last piece has.
    // Safe from many threads at once.
    size_t encode(std::string_view text, std::vector<uint32_t>& ids) const;

    // Appends the ids of a piece that is not to be split. `look_up`: a piece that is a token is that token, even if
    // merging would not arrive there.
    size_t encode_piece(std::string_view piece, std::vector<uint32_t>& ids, bool look_up = true) const;

  private:
    size_t encode_piece(std::string_view piece, const char* text_end, std::vector<uint32_t>& ids,
                        MergeScratch& scratch, bool look_up) const;

    Vocabulary vocabulary_;
    Pattern pattern_;
};

}  // namespace llmfast
