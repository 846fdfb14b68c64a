#include "train/count_words.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "system/interrupt.h"
#include "system/pages.h"
#include "pretokenize/piece_limit.h"

namespace llmfast {
namespace {

constexpr std::ptrdiff_t kLooks = 1 << 14;  // slots between two looks at whether the caller still wants the result

}  // namespace

void ShortWords::grow(std::size_t more) {
    ShortWords larger(std::bit_width(std::max(n_slots_, n_words_ + more) * 2 - 1));
    for (const Slot& slot : *this) {
        if (slot.count != 0) larger.add(slot.key, larger.home(slot.key), slot.count);
    }
    *this = std::move(larger);
}

ShortWords ShortWords::join(const std::vector<ShortWords*>& tables, Team& team) {
    std::size_t most = std::size_t{1} << (kFewBits - 1);
    for (const ShortWords* table : tables) most += table->size();
    const int bits = std::bit_width(2 * most - 1);
    ShortWords all(bits, allocate(sizeof(Slot) << bits));

    // Every table has its words in the order of hashes: the same part of each goes into one part of the new one. What
    // collisions have carried beyond the end of its part is added afterwards.
    const std::size_t parts = std::min(std::bit_ceil(team.size()), std::size_t{1} << kFewBits);
    std::vector<std::vector<Slot>> astray(parts);
    std::vector<std::size_t> n_words(parts);
    team.run(parts, [&](std::size_t part, std::size_t) {
        Slot *const first = all.begin() + all.n_slots_ / parts * part, *const last = first + all.n_slots_ / parts;
        std::fill(first, last, Slot{});
        for (const ShortWords* table : tables) {
            const Slot* slot = table->begin() + table->n_slots_ / parts * part;
            for (const Slot* const stop = slot + table->n_slots_ / parts; slot != stop; ++slot) {
                if ((stop - slot) % kLooks == 0) check_interrupt();
                if (slot->count == 0) continue;
                Slot* const home = all.home(slot->key);
                const bool here = home >= first && home < last;
                if (here && add_between(home, last, slot->key, slot->count, n_words[part])) continue;
                astray[part].push_back(*slot);
            }
        }
    });
    for (std::size_t part = 0; part < parts; ++part) {
        all.n_words_ += n_words[part];
        for (const Slot& slot : astray[part]) all.add(slot.key, all.home(slot.key), slot.count);
    }
    for (ShortWords* table : tables) *table = ShortWords();
    return all;
}

WordCounts::WordCounts() : long_(1 << 8) {}

void WordCounts::add(std::string_view word, std::uint64_t count) {
    if (word.empty() || count == 0) return;
    if (word.size() > kLongestShortKey) return add_long(word, count);
    flush();
    if (!short_.has_room(1)) short_.grow(1);
    const Key key = short_key(word.data(), word.size(), false);
    short_.add(key, short_.home(key), count);
}

void WordCounts::flush() {
    // Buffer moves the slots that were worked out when the words were held back.
    if (!short_.has_room(n_held_)) {
        short_.grow(n_held_);
        for (std::size_t i = 0; i < n_held_; ++i) held_[i].home = short_.home(held_[i].key);
    }
    for (std::size_t i = 0; i < n_held_; ++i) short_.add(held_[i].key, held_[i].home, 1);
    n_held_ = 0;
}

void WordCounts::add_long(std::string_view word, std::uint64_t count) {
    if (word.size() > kLongestPiece) throw_piece_too_long(word.size());
    if ((n_long_ + 1) * 2 > long_.size()) grow_long();
    const std::uint64_t h = hash_bytes(word);
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

void WordCounts::join(std::vector<WordCounts>& counts) {
    for (WordCounts& from : counts) from.flush();
    if (counts.size() == 1) return;
    std::vector<ShortWords*> tables;
    for (WordCounts& from : counts) tables.push_back(&from.short_);
    Team team(counts.size());
    counts[0].short_ = ShortWords::join(tables, team);

    for (auto from = counts.begin() + 1; from != counts.end(); ++from) {
        for (const LongSlot& slot : from->long_) {
            if ((&slot - from->long_.data()) % kLooks == 0) check_interrupt();
            if (slot.count == 0) continue;
            counts[0].add_long(std::string_view(from->long_bytes_).substr(slot.offset, slot.length), slot.count);
        }
        *from = WordCounts();
    }
}

std::vector<Word> WordCounts::words() const {
    std::vector<Word> words;
    words.reserve(short_.size() + n_long_);
    for (const ShortWords::Slot& slot : short_) {
        if (slot.count == 0) continue;
        const char* bytes = reinterpret_cast<const char*>(&slot.key);
        words.push_back({{bytes, static_cast<unsigned char>(bytes[kLongestShortKey])}, slot.count});
    }
    for (const LongSlot& slot : long_) {
        if (slot.count == 0) continue;
        words.push_back({std::string_view(long_bytes_).substr(slot.offset, slot.length), slot.count});
    }
    return words;
}

}  // namespace llmfast
