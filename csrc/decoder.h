// Ids to bytes, special tokens among them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "specials.h"
#include "vocabulary.h"

namespace llmfast {

class Decoder {
  public:
    Decoder(const Vocabulary& vocabulary, const Specials& specials);

    // The bytes of a token; empty for an id that has none.
    std::string_view bytes(uint32_t id) const {
        if (id >= spans_.size()) return {};
        return {text_.data() + spans_[id].offset, spans_[id].length};
    }

    // Appends the bytes of a token; false for an id that has none.
    bool append(uint32_t id, std::string& text) const {
        const std::string_view token = bytes(id);
        text.append(token);
        return !token.empty();
    }

    uint32_t largest_id() const { return static_cast<uint32_t>(spans_.size() - 1); }

  private:
    struct Span { uint32_t offset, length; };

    std::string text_;  // every token, one behind another
    std::vector<Span> spans_;
};

}  // namespace llmfast
