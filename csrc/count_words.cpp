#include "count_words.h"

#include <functional>
#include <utility>

namespace llmfast {

WordCounts::WordCounts() : short_(1 << 14), shift_(64 - 14), long_(1 << 8) {}

void WordCounts::add(std::string_view word, std::uint64_t count) {
    if (word.empty() || count == 0) return;
    if (word.size() > kLongestShortKey) return add_long(word, count);
    flush();
    if ((n_short_ + 1) * 2 > short_.size()) grow_short();
    const Key key = short_key(word.data(), word.size(), false);
    add_short(key, hash_key(key) >> shift_, count);
}

void WordCounts::flush() {
    // Growing would move the slots that were worked out when the words were held back.
    if ((n_short_ + n_held_) * 2 > short_.size()) {
        grow_short();
        for (std::size_t i = 0; i < n_held_; ++i) held_[i].slot = hash_key(held_[i].key) >> shift_;
    }
    for (std::size_t i = 0; i < n_held_; ++i) add_short(held_[i].key, held_[i].slot, 1);
    n_held_ = 0;
}

void WordCounts::add_short(Key key, std::size_t slot, std::uint64_t count) {
    while (short_[slot].count != 0 && short_[slot].key != key) slot = (slot + 1) & (short_.size() - 1);
    if (short_[slot].count == 0) {
        short_[slot].key = key;
        ++n_short_;
    }
    short_[slot].count += count;
}

void WordCounts::grow_short() {
    const std::vector<ShortSlot> old = std::exchange(short_, std::vector<ShortSlot>(short_.size() * 2));
    --shift_;
    n_short_ = 0;
    for (const ShortSlot& slot : old) {
        if (slot.count != 0) add_short(slot.key, hash_key(slot.key) >> shift_, slot.count);
    }
}

void WordCounts::add_long(std::string_view word, std::uint64_t count) {
    if ((n_long_ + 1) * 2 > long_.size()) grow_long();
    const std::uint64_t h = std::hash<std::string_view>{}(word);
    for (std::size_t i = h & (long_.size() - 1);; i = (i + 1) & (long_.size() - 1)) {
        LongSlot& slot = long_[i];
        if (slot.count == 0) {
            slot = {h, long_bytes_.size(), word.size(), count};
            long_bytes_.append(word);
            ++n_long_;
            return;
        }
        if (slot.hash == h && std::string_view(long_bytes_).substr(slot.offset, slot.length) == word) {
            slot.count += count;
            return;
        }
    }
}

void WordCounts::grow_long() {
    const std::vector<LongSlot> old = std::exchange(long_, std::vector<LongSlot>(long_.size() * 2));
    for (const LongSlot& slot : old) {
        if (slot.count == 0) continue;
        std::size_t i = slot.hash & (long_.size() - 1);
        while (long_[i].count != 0) i = (i + 1) & (long_.size() - 1);
        long_[i] = slot;
    }
}

void WordCounts::absorb(WordCounts& other) {
    // Grown beforehand: words that come in the order of their hashes would pile up at the front of a small table.
    while ((n_short_ + other.n_short_) * 2 > short_.size()) grow_short();
    for (const ShortSlot& slot : other.short_) {
        if (slot.count != 0) add_short(slot.key, hash_key(slot.key) >> shift_, slot.count);
    }
    while ((n_long_ + other.n_long_) * 2 > long_.size()) grow_long();
    for (const LongSlot& slot : other.long_) {
        if (slot.count != 0) add_long(std::string_view(other.long_bytes_).substr(slot.offset, slot.length), slot.count);
    }
    other = WordCounts();
}

std::vector<Word> WordCounts::words() const {
    std::vector<Word> words;
    words.reserve(n_short_ + n_long_);
    for (const ShortSlot& slot : short_) {
        if (slot.count == 0) continue;
        const char* bytes = reinterpret_cast<const char*>(&slot.key);
        words.push_back({{bytes, static_cast<unsigned char>(bytes[kLongestShortKey])}, slot.count});
    }
    for (const LongSlot& slot : long_) {
        if (slot.count != 0) words.push_back({std::string_view(long_bytes_).substr(slot.offset, slot.length), slot.count});
    }
    return words;
}

}  // namespace llmfast
