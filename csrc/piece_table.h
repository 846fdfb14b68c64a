// Short pieces -> their ids: the vocabulary's tokens from the start, and what merging finds as it is found.
//
// A slot is 32 bytes and holds everything, so that a lookup touches one cache line. Slots are written once and never
// changed: any number of threads read and add without a lock. A table that is full learns no more.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "key.h"
#include "vocabulary.h"

namespace llmfast {

constexpr size_t kMostIds = 4;

class PieceTable {
  public:
    struct alignas(32) Slot {
        std::atomic<uint64_t> high;  // 0: empty; written last
        uint64_t low;
        uint32_t ids[kMostIds];      // the first one has the number of ids in its top byte
    };

    explicit PieceTable(const Vocabulary& vocabulary);
    ~PieceTable();
    PieceTable(const PieceTable&) = delete;
    PieceTable& operator=(const PieceTable&) = delete;

    size_t index(Key key) const { return hash_key(key) & mask_; }
    const Slot* slot(size_t index) const { return slots_ + index; }

    static bool holds(const Slot& slot, Key key) {
        return slot.high.load(std::memory_order_acquire) == key.high && slot.low == key.low;
    }

    // The slot of a key, or nullptr, searched from `index(key)`.
    const Slot* find(Key key, size_t index) const {
        for (;; index = (index + 1) & mask_) {
            const Slot& slot = slots_[index];
            if (holds(slot, key)) return &slot;
            if (slot.high.load(std::memory_order_relaxed) == 0) return nullptr;
        }
    }

    // Writes the ids of a slot to `out`, which has room for kMostIds, and returns how many count.
    static size_t copy(const Slot& slot, uint32_t* out) {
        std::memcpy(out, slot.ids, sizeof slot.ids);
        out[0] &= kLargestId;
        return slot.ids[0] >> 24;
    }

    // Remembers the 1..kMostIds ids of a piece, if there is room.
    void learn(Key key, const uint32_t* ids, size_t count);

    size_t bytes() const { return (mask_ + 1) * sizeof(Slot); }

  private:
    void put(Key key, const uint32_t* ids, size_t count);

    Slot* slots_;
    size_t mask_;
    std::atomic<size_t> room_;  // how many more may be learnt
};

}  // namespace llmfast
