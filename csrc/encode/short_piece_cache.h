// The cache of short pieces: the vocabulary's tokens from the start, and pieces that were merged.
//
// A slot holds everything, so that a lookup touches one cache line; only pieces of many ids have them elsewhere
// (long_piece_cache.h). Slots are written once and never changed: any number of threads read and insert without a lock.
// A piece is only ever searched in the kProbes slots of its bucket, and a full bucket, or a full table, takes no more:
// whatever words it has seen, a lookup costs no more than reading these slots.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "system/key.h"
#include "system/pages.h"

namespace llmfast {

class ShortPieceCache {
  public:
    static constexpr size_t kMostIds = 4;  // in a slot
    static constexpr size_t kProbes = 16;

    struct Slot {
        std::atomic<uint64_t> high;  // of the key, neither 0 nor ~0; 0: empty. Written last.
        uint64_t low;
        // The first has their number in its top byte: above kMostIds, ids[1] is where they are.
        uint32_t ids[kMostIds];
    };

    // A table of `slots`, a power of two and at least kProbes, of which up to 5/8 are used.
    explicit ShortPieceCache(size_t slots)
        : pages_(slots * sizeof(Slot)),
          slots_(static_cast<Slot*>(pages_.data())),
          shift_(std::countl_zero(slots - 1)),
          room_(slots / 8 * 5) {}

    // The first slot of a key: multiply-shift hashing, which costs half of hash_key. What collides in spite of the
    // secret is bounded by kProbes.
    size_t index(const Key& key, const HashSecret& secret = kHashSecret) const {
        return ((key.low ^ key.high * secret.low) * secret.high) >> shift_;
    }
    const Slot* slot(size_t index) const { return slots_ + index; }

    // The slot of a key, or nullptr. The search starts at `index(key)`, in the same cache line.
    const Slot* find(const Key& key, size_t index) const {
        for (size_t i = 0; i < kProbes; ++i) {
            const Slot& slot = slots_[index ^ i];
            if (has(slot, key)) return &slot;
            if (slot.high.load(std::memory_order_relaxed) == 0) return nullptr;
        }
        return nullptr;
    }
    static bool has(const Slot& slot, const Key& key) {
        return slot.high.load(std::memory_order_acquire) == key.high && slot.low == key.low;
    }

    // Writes the ids of a slot, if they are there, to `out`, which has room for kMostIds, and returns how many there
    // are.
    static size_t copy(const Slot& slot, uint32_t* out) {
        uint64_t first;
        std::memcpy(&first, slot.ids, 8);
        first &= ~uint64_t{0xFF000000};
        std::memcpy(out, &first, 8);
        std::memcpy(out + 2, slot.ids + 2, 8);
        return slot.ids[0] >> 24;
    }

    bool is_full() const { return room_.load(std::memory_order_relaxed) <= 0; }

    // Inserts the `count` ids of a piece, or, if they are more than kMostIds, that they are at `place`; false where
    // there is no room. If two threads insert the same piece, the second slot is never found.
    bool insert(const Key& key, const uint32_t* ids, size_t count, uint32_t place = 0) {
        if (is_full()) return false;
        const uint32_t elsewhere[2] = {0, place};
        const uint32_t* const kept = count <= kMostIds ? ids : elsewhere;
        const size_t home = index(key);
        for (size_t i = 0; i < kProbes; ++i) {
            Slot& slot = slots_[home ^ i];
            uint64_t found = slot.high.load(std::memory_order_relaxed);
            if (found != 0 || !slot.high.compare_exchange_strong(found, kClaimed, std::memory_order_relaxed)) continue;
            slot.low = key.low;
            std::copy_n(kept, count <= kMostIds ? count : 2, slot.ids);
            slot.ids[0] |= static_cast<uint32_t>(count) << 24;
            slot.high.store(key.high, std::memory_order_release);
            room_.fetch_sub(1, std::memory_order_relaxed);
            return true;
        }
        return false;
    }

  private:
    static constexpr uint64_t kClaimed = ~0ull;  // a slot that is being written

    Pages pages_;
    Slot* slots_;
    int shift_;                    // from a hash to a slot
    std::atomic<ptrdiff_t> room_;  // how many more may be inserted; below 0 when several threads took the last
};

}  // namespace llmfast
