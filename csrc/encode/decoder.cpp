#include "encode/decoder.h"

#include <algorithm>

#include "system/cpu_features.h"
#include "system/interrupt.h"

namespace llmfast {
namespace {

constexpr size_t kWindow = 1 << 16;  // ids to decode between two checks for an interrupt

}  // namespace

Decoder::Decoder(const Vocabulary& vocabulary, const std::vector<Special>& specials) {
    largest_id_ = vocabulary.largest_id();
    for (const Special& special : specials) largest_id_ = std::max(largest_id_, special.id);
    const size_t tokens = vocabulary.size() + specials.size();
    near_ = static_cast<uint32_t>(std::min<size_t>(size_t{largest_id_} + 1, 4 * tokens + (1 << 16)));
    kinds_.resize(size_t{near_} + 1);
    slots_.resize(size_t{near_} + 1);
    InterruptCounter counter;
    for (size_t at = 0; at < vocabulary.size(); ++at) {
        counter.add(1);
        add(vocabulary.id(at), vocabulary.token(at));
    }
    for (const Special& special : specials) add(special.id, special.bytes);
}

LLMFAST_NOINLINE size_t Decoder::far_place(uint32_t id) const {
    const auto found = far_.find(id);
    return found == far_.end() ? near_ : found->second;
}

void Decoder::add(uint32_t id, std::string_view token) {
    if (token.empty() || kinds_[place(id, view())]) return;
    size_t at = id;
    if (id >= near_) {
        at = far_[id] = kinds_.size();
        kinds_.emplace_back();
        slots_.emplace_back();
    }
    if (token.size() <= kShort) {
        kinds_[at] = static_cast<uint8_t>(token.size());
        std::memcpy(slots_[at].bytes, token.data(), token.size());
    } else {
        kinds_[at] = kLong;
        slots_[at].span = {long_.size(), token.size()};
        long_ += token;
    }
    const auto is_ascii = [](char byte) { return static_cast<uint8_t>(byte) < 0x80; };
    if (!std::all_of(token.begin(), token.end(), is_ascii)) kinds_[at] |= kNotAscii;
}

std::string_view Decoder::bytes(uint32_t id) const {
    const size_t at = place(id, view()), length = kinds_[at] & ~kNotAscii;
    const Slot& slot = slots_[at];
    return length <= kShort ? std::string_view(slot.bytes, length)
                            : std::string_view(long_.data() + slot.span.offset, slot.span.length);
}

Decoder::Size Decoder::measure(std::span<const uint32_t> ids) const {
    Size all = {0, true, nullptr};
    while (!ids.empty() && !all.unknown) {
        check_interrupt();
        const size_t count = std::min(ids.size(), kWindow);
        const Size some = measure_some(ids.first(count));
        all = {all.bytes + some.bytes, all.is_ascii && some.is_ascii, some.unknown};
        ids = ids.subspan(count);
    }
    return all;
}

Decoder::Size Decoder::measure_some(std::span<const uint32_t> ids) const {
    const View view = this->view();
    size_t size = 0;
    uint8_t seen = 0;
    for (const uint32_t& id : ids) {
        const size_t at = place(id, view);
        const uint8_t kind = view.kinds[at];
        if (kind == 0) return {size, false, &id};
        const size_t length = kind & ~kNotAscii;
        size += length <= kShort ? length : view.slots[at].span.length;
        seen |= kind;
    }
    return {size, !(seen & kNotAscii), nullptr};
}

void Decoder::write(std::span<const uint32_t> ids, char* out, size_t size) const {
    const char* const end = out + size;
    while (!ids.empty()) {
        check_interrupt();
        const size_t count = std::min(ids.size(), kWindow);
        out = write_some(ids.first(count), out, end);
        ids = ids.subspan(count);
    }
}

char* Decoder::write_some(std::span<const uint32_t> ids, char* out, const char* end) const {
    const View view = this->view();
    for (const uint32_t id : ids) {
        const size_t at = place(id, view), length = view.kinds[at] & ~kNotAscii;
        if (length <= kShort && static_cast<size_t>(end - out) >= kShort) {
            std::memcpy(out, view.slots[at].bytes, kShort);  // one instruction; the next token overwrites the excess
            out += length;
        } else {
            const std::string_view token = bytes(id);
            std::memcpy(out, token.data(), token.size());
            out += token.size();
        }
    }
    return out;
}

}  // namespace llmfast
