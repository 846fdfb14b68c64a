#include "decoder.h"

#include <algorithm>

namespace llmfast {

Decoder::Decoder(const Vocabulary& vocabulary, const Specials& specials) {
    uint32_t largest = vocabulary.largest_id();
    for (const Special& special : specials.all()) largest = std::max(largest, special.id);
    kinds_.resize(size_t{largest} + 1);
    slots_.resize(size_t{largest} + 1);
    for (uint32_t id = 0; id <= vocabulary.largest_id(); ++id) add(id, vocabulary.bytes(id));
    for (const Special& special : specials.all()) add(special.id, special.bytes);
}

void Decoder::add(uint32_t id, std::string_view token) {
    if (kinds_[id] || token.empty()) return;  // an ordinary token goes before a special one of its id
    if (token.size() <= kShort) {
        kinds_[id] = static_cast<uint8_t>(token.size());
        std::memcpy(slots_[id].bytes, token.data(), token.size());
    } else {
        kinds_[id] = kLong;
        slots_[id].span = {long_.size(), token.size()};
        long_ += token;
    }
    const auto is_ascii = [](char byte) { return static_cast<uint8_t>(byte) < 0x80; };
    if (!std::all_of(token.begin(), token.end(), is_ascii)) kinds_[id] |= kNotAscii;
}

std::string_view Decoder::bytes(uint32_t id) const {
    if (id >= kinds_.size()) return {};
    const size_t length = kinds_[id] & ~kNotAscii;
    const Slot& slot = slots_[id];
    return length <= kShort ? std::string_view(slot.bytes, length)
                            : std::string_view(long_.data() + slot.span.offset, slot.span.length);
}

Decoder::Size Decoder::measure(std::span<const uint32_t> ids) const {
    size_t size = 0;
    uint8_t seen = 0;
    for (const uint32_t& id : ids) {
        const uint8_t kind = id < kinds_.size() ? kinds_[id] : 0;
        if (kind == 0) return {size, false, &id};
        const size_t length = kind & ~kNotAscii;
        size += length <= kShort ? length : slots_[id].span.length;
        seen |= kind;
    }
    return {size, !(seen & kNotAscii), nullptr};
}

void Decoder::write(std::span<const uint32_t> ids, char* out, size_t size) const {
    const char* const end = out + size;
    for (const uint32_t id : ids) {
        const size_t length = kinds_[id] & ~kNotAscii;
        if (length <= kShort && static_cast<size_t>(end - out) >= kShort) {
            std::memcpy(out, slots_[id].bytes, kShort);  // one instruction; what is too much is written over
            out += length;
        } else {
            const std::string_view token = bytes(id);
            std::memcpy(out, token.data(), token.size());
            out += token.size();
        }
    }
}

}  // namespace llmfast
