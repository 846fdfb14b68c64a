#include "train/count_words.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "pretokenize/piece_limit.h"
#include "system/interrupt.h"
#include "system/pages.h"

namespace llmfast {
namespace {

// hash_bytes() of a word that may be long.
uint64_t hash_word(std::string_view word) {
    uint64_t hash = 0;
    in_windows(word.size(),
               [&](size_t begin, size_t end) { hash = hash_words(hash_bytes(word.substr(begin, end - begin)), hash); });
    return hash;
}

}  // namespace

void ShortWords::grow(size_t more) {
    ShortWords larger(static_cast<int>(std::bit_width(std::max(n_slots_, n_words_ + more) * 2 - 1)));
    InterruptCounter counter;
    for (const Slot& slot : *this) {
        counter.add(1);
        if (slot.count != 0) larger.add(slot.key, larger.home(slot.key), slot.count);
    }
    *this = std::move(larger);
}

ShortWords ShortWords::join(const std::vector<ShortWords*>& tables, Team& team) {
    size_t most = size_t{1} << (kFewBits - 1);
    for (const ShortWords* table : tables) most += table->size();
    const int bits = static_cast<int>(std::bit_width(2 * most - 1));
    ShortWords all(bits, allocate(sizeof(Slot) << bits));

    // Every table has its words in the order of hashes: the same part of each goes into one part of the new one. What
    // collisions have carried beyond the end of its part is added afterwards.
    const size_t parts = std::min(std::bit_ceil(team.size()), size_t{1} << kFewBits);
    std::vector<std::vector<Slot>> astray(parts);
    std::vector<size_t> n_words(parts);
    team.run(parts, [&](size_t part, size_t) {
        Slot *const first = all.begin() + all.n_slots_ / parts * part, *const last = first + all.n_slots_ / parts;
        in_windows(static_cast<size_t>(last - first),
                   [first](size_t begin, size_t end) { std::fill(first + begin, first + end, Slot{}); });
        InterruptCounter counter;
        for (const ShortWords* table : tables) {
            const Slot* slot = table->begin() + table->n_slots_ / parts * part;
            for (const Slot* const stop = slot + table->n_slots_ / parts; slot != stop; ++slot) {
                counter.add(1);
                if (slot->count == 0) continue;
                Slot* const home = all.home(slot->key);
                const bool here = home >= first && home < last;
                if (here && add_between(home, last, slot->key, slot->count, n_words[part])) continue;
                astray[part].push_back(*slot);
            }
        }
    });
    InterruptCounter counter;
    for (size_t part = 0; part < parts; ++part) {
        all.n_words_ += n_words[part];
        for (const Slot& slot : astray[part]) {
            counter.add(1);
            all.add(slot.key, all.home(slot.key), slot.count);
        }
    }
    for (ShortWords* table : tables) *table = ShortWords();
    return all;
}

WordCounts::WordCounts() : long_(1 << 8) {}

void WordCounts::add(std::string_view word, uint64_t count) {
    if (word.empty() || count == 0) return;
    if (word.size() > kLongestShortKey) return add_long(word, count);
    flush();
    if (!short_.has_room(1)) short_.grow(1);
    const Key key = short_key(word.data(), word.size(), false);
    short_.add(key, short_.home(key), count);
}

void WordCounts::flush() {
    // Growing moves the slots that were computed when the words were held back.
    if (!short_.has_room(n_held_)) {
        short_.grow(n_held_);
        for (size_t i = 0; i < n_held_; ++i) held_[i].home = short_.home(held_[i].key);
    }
    for (size_t i = 0; i < n_held_; ++i) short_.add(held_[i].key, held_[i].home, 1);
    n_held_ = 0;
}

void WordCounts::add_long(std::string_view word, uint64_t count) {
    if (word.size() > kLongestPiece) throw_piece_too_long(word.size());
    if ((n_long_ + 1) * 2 > long_.size()) grow_long();
    const uint64_t h = hash_word(word);
    for (size_t i = h & (long_.size() - 1);; i = (i + 1) & (long_.size() - 1)) {
        LongSlot& slot = long_[i];
        if (slot.count == 0) {
            copy_in_windows(word.data(), word.size(), long_bytes_.prepare(word.size()));
            slot = {h, long_bytes_.size(), word.size(), count};
            long_bytes_.commit(word.size());
            ++n_long_;
            return;
        }
        if (slot.hash == h && bytes(slot) == word) {
            slot.count += count;
            return;
        }
    }
}

void WordCounts::grow_long() {
    ZeroedArray<LongSlot> larger(long_.size() * 2);
    InterruptCounter counter;
    for (const LongSlot& slot : long_) {
        counter.add(1);
        if (slot.count == 0) continue;
        size_t i = slot.hash & (larger.size() - 1);
        while (larger[i].count != 0) i = (i + 1) & (larger.size() - 1);
        larger[i] = slot;
    }
    long_ = std::move(larger);
}

void WordCounts::join(std::vector<WordCounts>& counts) {
    for (WordCounts& from : counts) from.flush();
    if (counts.size() == 1) return;
    std::vector<ShortWords*> tables;
    for (WordCounts& from : counts) tables.push_back(&from.short_);
    Team team(counts.size());
    counts[0].short_ = ShortWords::join(tables, team);

    for (auto from = counts.begin() + 1; from != counts.end(); ++from) {
        InterruptCounter counter;
        for (const LongSlot& slot : from->long_) {
            counter.add(1 + slot.length / 16);
            if (slot.count != 0) counts[0].add_long(from->bytes(slot), slot.count);
        }
        *from = WordCounts();
    }
}

std::vector<Word> WordCounts::words() const {
    std::vector<Word> words;
    words.reserve(short_.size() + n_long_);
    InterruptCounter counter;
    for (const ShortWords::Slot& slot : short_) {
        counter.add(1);
        if (slot.count == 0) continue;
        const char* bytes = reinterpret_cast<const char*>(&slot.key);
        words.push_back({{bytes, static_cast<unsigned char>(bytes[kLongestShortKey])}, slot.count});
    }
    for (const LongSlot& slot : long_) {
        counter.add(1);
        if (slot.count != 0) words.push_back({bytes(slot), slot.count});
    }
    return words;
}

}  // namespace llmfast
