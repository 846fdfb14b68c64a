// Pieces -> their ids: the vocabulary's tokens from the start, and what merging finds as it is found.
//
// A slot holds everything, so that a lookup touches one cache line. Slots are written once and never changed: any
// number of threads read and add without a lock. A table that is full learns no more.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "key.h"
#include "pages.h"

namespace llmfast {

// `kWords` of 8 bytes make a key, whose last one is neither 0 nor ~0; as many bytes hold ids.
template <typename KeyType>
class PieceTable {
  public:
    static constexpr size_t kWords = sizeof(KeyType) / 8;
    static constexpr size_t kMostIds = sizeof(KeyType) / 4;

    struct Slot {
        std::atomic<uint64_t> last;   // the key's last word; 0: empty. Written last.
        uint64_t words[kWords - 1];   // the others
        uint32_t ids[kMostIds];       // the first one has the number of ids in its top byte
    };

    // A table of `slots`, a power of two, that takes up to 5/8 of them.
    explicit PieceTable(size_t slots)
        : pages_(slots * sizeof(Slot)), slots_(static_cast<Slot*>(pages_.data())), mask_(slots - 1), room_(slots / 8 * 5) {}

    size_t index(const KeyType& key) const { return hash_key(key) & mask_; }
    const Slot* slot(size_t index) const { return slots_ + index; }

    // The slot of a key, or nullptr, searched from `index(key)`.
    const Slot* find(const KeyType& key, size_t index) const {
        uint64_t words[kWords];
        std::memcpy(words, &key, sizeof key);
        for (;; index = (index + 1) & mask_) {
            const Slot& slot = slots_[index];
            const uint64_t last = slot.last.load(std::memory_order_acquire);
            if (last == words[kWords - 1]) {
                bool same = true;
                for (size_t i = 0; i + 1 < kWords; ++i) same &= slot.words[i] == words[i];
                if (same) return &slot;
            }
            if (last == 0) return nullptr;
        }
    }

    // Writes the ids of a slot to `out`, which has room for kMostIds, and returns how many count.
    static size_t copy(const Slot& slot, uint32_t* out) {
        std::memcpy(out, slot.ids, sizeof slot.ids);
        out[0] &= 0xFFFFFF;
        return slot.ids[0] >> 24;
    }

    // Remembers the 0..kMostIds ids of a piece, if there is room: false if there is none. Two threads may add the same piece twice: the second
    // entry is never found.
    bool learn(const KeyType& key, const uint32_t* ids, size_t count) {
        if (room_.load(std::memory_order_relaxed) <= 0) return false;
        room_.fetch_sub(1, std::memory_order_relaxed);
        uint64_t words[kWords];
        std::memcpy(words, &key, sizeof key);
        for (size_t at = index(key);; at = (at + 1) & mask_) {
            Slot& slot = slots_[at];
            uint64_t found = slot.last.load(std::memory_order_relaxed);
            if (found != 0 || !slot.last.compare_exchange_strong(found, kClaimed, std::memory_order_relaxed)) continue;
            for (size_t i = 0; i + 1 < kWords; ++i) slot.words[i] = words[i];
            for (size_t i = 0; i < count; ++i) slot.ids[i] = ids[i];
            slot.ids[0] |= static_cast<uint32_t>(count) << 24;
            slot.last.store(words[kWords - 1], std::memory_order_release);
            return true;
        }
    }

  private:
    static constexpr uint64_t kClaimed = ~0ull;  // a slot that is being written

    Pages pages_;
    Slot* slots_;
    size_t mask_;
    std::atomic<ptrdiff_t> room_;  // how many more may be learnt; below 0 when several threads took the last
};

using ShortPieces = PieceTable<Key>;         // 32-byte slots, 4 ids
using MediumPieces = PieceTable<MediumKey>;  // 64-byte slots, 8 ids

}  // namespace llmfast
