#include "pair_table.h"

#include <algorithm>
#include <bit>

#include "merge.h"
#include "unicode.h"

namespace llmfast {
namespace {

// At most 3/8 full: most lookups find nothing, and should notice at once.
size_t entries_for(size_t tokens) { return std::bit_ceil(tokens * 8 / 3 + 1); }

uint8_t byte_at(std::string_view token, size_t at) { return static_cast<uint8_t>(token[at]); }

// Whether a token ends with all of the bytes of its last character.
bool ends_whole(std::string_view token) {
    size_t start = token.size() - 1;
    while (start > 0 && is_continuation(byte_at(token, start))) --start;
    const uint8_t* at = reinterpret_cast<const uint8_t*>(token.data()) + start;
    const size_t size = token.size() - start;
    return character_at(at, at + size).size == size && (size > 1 || *at < 0x80);
}

}  // namespace

PairTable::PairTable(const Vocabulary& vocabulary)
    : entries_(entries_for(vocabulary.size()), Entry{kNoToken, kNoToken, kNoToken}),
      mask_(entries_.size() - 1),
      characters_(65536, kNoToken) {
    for (size_t byte = 0; byte < 256; ++byte) {
        const char text = static_cast<char>(byte);
        bytes_[byte] = vocabulary.find({&text, 1});
    }
    MergeScratch scratch;
    for (uint32_t id = 0; id <= vocabulary.largest_id() && ordered_; ++id) {
        if (vocabulary.bytes(id).size() > 1) add_token(vocabulary, id, scratch);
    }
}

// The token's two halves are what the tokens of lower rank make of its bytes, if that is two.
void PairTable::add_token(const Vocabulary& vocabulary, uint32_t id, MergeScratch& scratch) {
    const std::string_view token = vocabulary.bytes(id);
    std::vector<uint32_t> parts(token.size());
    for (size_t i = 0; i < token.size(); ++i) {
        parts[i] = bytes_[byte_at(token, i)];
        if (parts[i] == kNoToken) return;
    }
    const size_t count = merge_tokens(*this, parts.data(), parts.size(), scratch);
    if (count == 2) {
        insert(parts[0], parts[1], id);
        add_character(token, id);
    } else if (merge_by_bytes(vocabulary, token, parts.data(), scratch) == 1) {
        ordered_ = false;  // merging arrives here through tokens of higher rank
    }
}

void PairTable::insert(uint32_t left, uint32_t right, uint32_t merged) {
    size_t at = index(left, right);
    while (entries_[at].merged != kNoToken) at = (at + 1) & mask_;
    entries_[at] = {left, right, merged};
}

void PairTable::add_character(std::string_view token, uint32_t id) {
    const uint8_t* begin = reinterpret_cast<const uint8_t*>(token.data());
    const Character first = character_at(begin, begin + token.size());
    if (first.size == token.size() && first.point < characters_.size()) characters_[first.point] = id;
    if (!is_continuation(begin[0]) && ends_whole(token)) return;
    for (size_t at = 1; at < token.size(); ++at) {
        if (!is_continuation(begin[at])) straddles_[size_t{begin[at - 1]} << 8 | begin[at]] = true;
    }
}

}  // namespace llmfast
