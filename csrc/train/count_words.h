// Counts the distinct pretokens ("words") of a text.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "system/buffer.h"
#include "system/key.h"
#include "system/parallel.h"
#include "system/prefetch.h"
#include "system/zeroed_array.h"
#include "train/train.h"

namespace llmfast {

// A hash table from words of up to 15 bytes, nearly all there are, to their counts. The bytes of a word are packed into
// two machine words with their number. Nobody can choose words that collide (hash.h): half of the slots are empty, and
// a search soon meets one.
class ShortWords {
  public:
    struct Slot {
        Key key;
        uint64_t count;  // 0: empty
    };

    static constexpr int kFewBits = 14;

    // Has 2^bits slots.
    explicit ShortWords(int bits = kFewBits) : ShortWords(bits, std::calloc(size_t{1} << bits, sizeof(Slot))) {}

    Slot* begin() const { return slots_.get(); }
    Slot* end() const { return begin() + n_slots_; }
    size_t size() const { return n_words_; }
    bool has_room(size_t more) const { return (n_words_ + more) * 2 <= n_slots_; }

    // Where the key belongs: in the order of hashes, so that tables of all sizes have words in the same order.
    Slot* home(Key key) const { return begin() + (hash_key(key) >> shift_); }

    // There must be room.
    void add(Key key, Slot* home, uint64_t count) {
        if (!add_between(home, end(), key, count, n_words_)) add_between(begin(), end(), key, count, n_words_);
    }

    // Twice the slots, or more if that is needed for `more` words.
    void grow(size_t more);

    // A table of the words of all tables, which are empty then. Each thread fills a part of the slots.
    static ShortWords join(const std::vector<ShortWords*>& tables, Team& team);

  private:
    // Takes over `slots`.
    ShortWords(int bits, void* slots)
        : slots_(static_cast<Slot*>(slots)), shift_(64 - bits), n_slots_(size_t{1} << bits) {
        if (!slots_) throw std::bad_alloc();
    }

    // False if neither the key nor an empty slot is between `slot` and `end`.
    static bool add_between(Slot* slot, const Slot* end, Key key, uint64_t count, size_t& n_words) {
        for (; slot != end; ++slot) {
            if (slot->count == 0) {
                *slot = {key, count};
                ++n_words;
                return true;
            }
            if (slot->key == key) {
                slot->count += count;
                return true;
            }
        }
        return false;
    }

    struct Free {
        void operator()(Slot* slots) const { std::free(slots); }
    };

    std::unique_ptr<Slot[], Free> slots_;
    int shift_;  // from a hash to a slot
    size_t n_slots_;
    size_t n_words_ = 0;
};

// The counts of all words. Short words are counted in groups whose slots are prefetched.
class WordCounts {
  public:
    WordCounts();

    // `readable`: 16 bytes may be read at word.data().
    void add(std::string_view word, bool readable) {
        if (word.size() > kLongestShortKey) {
            add_long(word, 1);
        } else if (!word.empty()) {
            hold_back(short_key(word.data(), word.size(), readable));
        }
    }

    void add(std::string_view word, uint64_t count);

    // Counts the words that are held back; call it before reading.
    void flush();

    // Adds the counts of all others to the first, and empties the others.
    static void join(std::vector<WordCounts>& counts);

    // The words in an unspecified order. Their bytes belong to this object, until it changes.
    std::vector<Word> words() const;

  private:
    static constexpr size_t kBatch = 16;

    struct LongSlot {
        uint64_t hash;
        size_t offset;  // in long_bytes_
        size_t length;
        uint64_t count;  // 0: empty
    };

    void hold_back(Key key) {
        if (n_held_ == kBatch) flush();
        ShortWords::Slot* const home = short_.home(key);
        prefetch_line(home);
        held_[n_held_++] = {key, home};
    }
    void add_long(std::string_view word, uint64_t count);
    void grow_long();
    std::string_view bytes(const LongSlot& slot) const { return {long_bytes_.data() + slot.offset, slot.length}; }

    struct Held {
        Key key;
        ShortWords::Slot* home;
    };
    std::array<Held, kBatch> held_;
    size_t n_held_ = 0;

    ShortWords short_;
    ZeroedArray<LongSlot> long_;  // a hash table; its size is a power of two
    size_t n_long_ = 0;
    ByteBuffer long_bytes_;
};

}  // namespace llmfast
