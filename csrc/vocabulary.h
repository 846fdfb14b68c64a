// Tokens both ways: bytes -> id by hash tables, id -> bytes by position. An id is also the token's merge rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace llmfast {

constexpr uint32_t kNoToken = UINT32_MAX;
constexpr uint32_t kLargestId = (1u << 24) - 1;  // ids share a word with a count in the tables
constexpr size_t kLongestShortKey = 15;

// Up to 15 bytes, zero-padded, with their number in the last byte: two words that compare and hash as one value.
struct Key {
    uint64_t low, high;
    bool operator==(const Key& other) const { return low == other.low && high == other.high; }
};

// The key of `length` <= 15 bytes at `at`; 16 bytes are read where `readable` says that they may be.
inline Key short_key(const char* at, size_t length, bool readable) {
    static constexpr uint64_t kKeep[17] = {
        0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF, ~0ull,
        ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull};
    uint64_t words[2] = {0, 0};
    std::memcpy(words, at, readable ? 16 : length);
    const uint64_t low = words[0] & kKeep[length];
    const uint64_t high = length > 8 ? words[1] & kKeep[length - 8] : 0;
    return {low, high | uint64_t{length} << 56};
}

inline uint64_t hash_key(Key key) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = Wide{key.low ^ 0x9E3779B97F4A7C15ull} * (key.high ^ 0xD6E8FEB86659FD93ull);
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

class Vocabulary {
  public:
    // `tokens[i]` has the id `ids[i]`. Throws std::invalid_argument for an empty token, a duplicate token or
    // id, or an id above kLargestId.
    Vocabulary(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids);

    // The id of a token, or kNoToken. `readable`: 16 bytes may be read at `at`.
    uint32_t find(const char* at, size_t length, bool readable = false) const {
        return length <= kLongestShortKey ? find_short(short_key(at, length, readable)) : find_long({at, length});
    }

    // The bytes of a token; empty for an id that has none.
    std::string_view bytes(uint32_t id) const {
        if (id >= spans_.size()) return {};
        return {bytes_.data() + spans_[id].offset, spans_[id].length};
    }

    size_t longest() const { return longest_; }
    uint32_t largest_id() const { return static_cast<uint32_t>(spans_.size() - 1); }
    size_t size() const { return count_; }

  private:
    struct Span { uint32_t offset, length; };
    struct Slot { Key key; uint32_t id; };

    uint32_t find_short(Key key) const {
        for (uint64_t at = hash_key(key) & short_mask_;; at = (at + 1) & short_mask_) {
            const Slot& slot = short_slots_[at];
            if (slot.key == key) return slot.id;
            if (slot.key.high == 0) return kNoToken;
        }
    }
    uint32_t find_long(std::string_view token) const;
    void insert(std::string_view token, uint32_t id);

    std::string bytes_;                  // every token, one behind another
    std::vector<Span> spans_;            // by id
    std::vector<Slot> short_slots_;      // tokens of up to 15 bytes; a power of two
    std::vector<uint32_t> long_slots_;   // ids of longer ones
    uint64_t short_mask_ = 0, long_mask_ = 0;
    size_t longest_ = 0, count_ = 0;
};

}  // namespace llmfast
