// From ids to bytes, special tokens included.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "system/hash.h"
#include "vocabulary/specials.h"
#include "vocabulary/vocabulary.h"

namespace llmfast {

// 17 bytes per id, and the bytes of the long tokens. Ids far above the number of tokens are kept apart: memory is
// proportional to the number of tokens, whatever their ids are.
class Decoder {
  public:
    // If an ordinary and a special token have the same id, the ordinary one is decoded; of several special ones the
    // first.
    Decoder(const Vocabulary& vocabulary, const std::vector<Special>& specials);

    // The bytes of a token; empty for an id that has none.
    std::string_view bytes(uint32_t id) const;
    uint32_t largest_id() const { return largest_id_; }

    struct Size {
        size_t bytes;
        bool is_ascii;
        const uint32_t* unknown;  // the first id that has no token, nullptr if all have
    };

    // The size of the text of `ids`. This and write() can be stopped (interrupt.h).
    Size measure(std::span<const uint32_t> ids) const;

    // Writes the text of `ids`, for which measure() returned `size` bytes and no unknown id.
    void write(std::span<const uint32_t> ids, char* out, size_t size) const;

  private:
    static constexpr size_t kShort = 16;  // the longest token that is moved by one load and one store
    static constexpr uint8_t kLong = kShort + 1, kNotAscii = 0x80;
    struct Span {
        uint64_t offset, length;
    };
    union Slot {
        char bytes[kShort];
        Span span;  // of a long token, in long_
    };

    void add(uint32_t id, std::string_view token);
    // What decoding reads for every id: local copies, which writing text cannot change, stay in registers.
    struct View {
        uint32_t near;
        const uint8_t* kinds;
        const Slot* slots;
    };
    View view() const { return {near_, kinds_.data(), slots_.data()}; }
    size_t place(uint32_t id, const View& view) const { return id < view.near ? id : far_place(id); }
    size_t far_place(uint32_t id) const;
    Size measure_some(std::span<const uint32_t> ids) const;
    char* write_some(std::span<const uint32_t> ids, char* out, const char* end) const;

    uint32_t near_ = 0;  // ids below are places themselves; place near_ is that of ids without a token
    struct Hash {
        size_t operator()(uint32_t id) const { return hash_words(id, 0); }  // nobody can choose ids that collide
    };
    std::unordered_map<uint32_t, size_t, Hash> far_;  // the places of other ids
    uint32_t largest_id_ = 0;
    // By place: the length of a short token or kLong, 0 for none; and whether it is ASCII.
    std::vector<uint8_t> kinds_;
    std::vector<Slot> slots_;
    std::string long_;
};

}  // namespace llmfast
