// Tokens both ways: bytes -> id by a hash table, id -> bytes by position. An id is also the token's merge rank.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "key.h"

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
        if (id >= spans_.size()) return {};
        return {bytes_.data() + spans_[id].offset, spans_[id].length};
    }

    uint32_t largest_id() const { return static_cast<uint32_t>(spans_.size() - 1); }
    size_t longest() const { return longest_; }  // bytes
    size_t size() const { return count_; }

  private:
    struct Span { uint32_t offset, length; };

    void insert(std::string_view token, uint32_t id);
    static size_t long_hash(std::string_view token);

    std::string bytes_;              // every token, one behind another
    std::vector<Span> spans_;        // by id
    std::vector<uint32_t> slots_;    // ids by the hash of their bytes; a power of two
    std::bitset<1 << 16> long_tokens_;  // a bit for each token of 16 bytes and more: most long pieces are none
    size_t longest_ = 0, count_ = 0;
};

// b'...' as Python writes it, for messages.
std::string printable(std::string_view bytes);

}  // namespace llmfast
