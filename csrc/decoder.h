// Ids to bytes, special tokens among them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "growing.h"
#include "specials.h"
#include "vocabulary.h"

namespace llmfast {

class Decoder {
  public:
    Decoder(const Vocabulary& vocabulary, const Specials& specials);

    // The bytes of a token; empty for an id that has none.
    std::string_view bytes(uint32_t id) const {
        const Span span = id < spans_.size() ? spans_[id] : Span{0, 0};
        return {text_.data() + span.offset, span.length};
    }

    // Appends the bytes of a token; false for an id that has none.
    bool append(uint32_t id, ByteBuffer& text) const {
        const std::string_view token = bytes(id);
        char* out = text.room(token.size() + kStep);
        if (token.size() <= kStep) {
            std::memcpy(out, token.data(), kStep);  // a fixed size is one instruction; text_ goes on behind its end
        } else {
            std::memcpy(out, token.data(), token.size());
        }
        text.grow(token.size());
        return !token.empty();
    }

    uint32_t largest_id() const { return static_cast<uint32_t>(spans_.size() - 1); }

  private:
    static constexpr size_t kStep = 16;
    struct Span { uint32_t offset, length; };

    std::string text_;  // every token, one behind another, and kStep more bytes
    std::vector<Span> spans_;
};

}  // namespace llmfast
