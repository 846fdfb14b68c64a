// Ids to bytes, special tokens among them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "specials.h"
#include "vocabulary.h"

namespace llmfast {

// 17 bytes an id, and the bytes of the long tokens.
class Decoder {
  public:
    Decoder(const Vocabulary& vocabulary, const Specials& specials);

    // The bytes of a token; empty for an id that has none.
    std::string_view bytes(uint32_t id) const;
    uint32_t largest_id() const { return static_cast<uint32_t>(kinds_.size() - 1); }

    struct Size {
        size_t bytes;
        bool is_ascii;
        const uint32_t* unknown;  // the first id that has no token, nullptr if all have
    };

    // What the text of `ids` takes.
    Size measure(std::span<const uint32_t> ids) const;

    // Writes the text of `ids`, which takes `size` bytes and has no unknown ones.
    void write(std::span<const uint32_t> ids, char* out, size_t size) const;

  private:
    static constexpr size_t kShort = 16;         // the longest token that is moved by one load and one store
    static constexpr uint8_t kLong = kShort + 1, kNotAscii = 0x80;
    struct Span { uint64_t offset, length; };
    union Slot {
        char bytes[kShort];
        Span span;  // of a long token, in long_
    };

    void add(uint32_t id, std::string_view token);

    std::vector<uint8_t> kinds_;  // by id: the length of a short token or kLong, 0 for none; and whether it is ASCII
    std::vector<Slot> slots_;
    std::string long_;
};

}  // namespace llmfast
