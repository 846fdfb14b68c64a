// The tokens of a vocabulary: from bytes to id by a hash table, from id to bytes by its position among all ids. An id
// is also the token's merge rank. Memory is proportional to the number of tokens, however large their ids are.
#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "system/key.h"

namespace llmfast {

constexpr uint32_t kNoToken = UINT32_MAX;
constexpr uint32_t kLargestId = (1u << 24) - 1;  // tables keep an id and a count in one word

class Vocabulary {
  public:
    // `tokens[i]` has the id `ids[i]`. Throws std::invalid_argument for an empty token, a duplicate token or
    // id, or an id above kLargestId.
    Vocabulary(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids);

    // The id of a token, or kNoToken.
    uint32_t find(std::string_view token) const;

    // The bytes of a token; empty for an id that has none.
    std::string_view bytes(uint32_t id) const {
        const size_t at = position(id);
        return at < ids_.size() && ids_[at] == id ? token(at) : std::string_view();
    }

    // The tokens by position, 0 to size() - 1, in ascending order of their ids.
    uint32_t id(size_t position) const { return ids_[position]; }
    std::string_view token(size_t position) const {
        return {bytes_.data() + spans_[position].offset, spans_[position].length};
    }

    uint32_t largest_id() const { return ids_.back(); }
    size_t longest() const { return longest_; }  // bytes
    size_t size() const { return ids_.size(); }

  private:
    struct Span {
        uint32_t offset, length;
    };

    // The first position whose id is not below `id`. Where ids have no gaps, they are positions.
    size_t position(uint32_t id) const {
        if (id < ids_.size() && ids_[id] == id) return id;
        return static_cast<size_t>(std::lower_bound(ids_.begin(), ids_.end(), id) - ids_.begin());
    }
    void append(std::string_view token, uint32_t id);
    static size_t long_hash(std::string_view token);

    std::string bytes_;                 // every token, one behind another
    std::vector<uint32_t> ids_;         // by position
    std::vector<Span> spans_;           // by position
    std::vector<uint32_t> slots_;       // positions by the hash of the tokens' bytes; a power of two
    std::bitset<1 << 16> long_tokens_;  // a bit for each token of 16 bytes and more: most long pieces are none
    size_t longest_ = 0;
};

// b'...' as Python writes it, for error messages: of a long token only its start.
std::string printable(std::string_view bytes);

}  // namespace llmfast
