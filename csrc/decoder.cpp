#include "decoder.h"

#include <algorithm>

namespace llmfast {

Decoder::Decoder(const Vocabulary& vocabulary, const Specials& specials) {
    uint32_t largest = vocabulary.largest_id();
    for (const Special& special : specials.all()) largest = std::max(largest, special.id);
    spans_.assign(size_t{largest} + 1, Span{0, 0});
    const auto add = [this](uint32_t id, std::string_view token) {
        if (spans_[id].length > 0 || token.empty()) return;  // an ordinary token goes before a special one of its id
        spans_[id] = {static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(token.size())};
        text_ += token;
    };
    for (uint32_t id = 0; id <= vocabulary.largest_id(); ++id) add(id, vocabulary.bytes(id));
    for (const Special& special : specials.all()) add(special.id, special.bytes);
    text_.append(kStep, '\0');
}

}  // namespace llmfast
