// Ids that do not fit beside a short key, one entry behind another; and a table that finds the long pieces among them.
//
// Entries are written once and never changed: any number of threads read and add without a lock. What is full learns no
// more.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "hash.h"
#include "pages.h"
#include "prefetch.h"

namespace llmfast {

class PieceLog {
  public:
    static constexpr size_t kLongest = 255;  // bytes: longer pieces are hardly ever seen again
    static constexpr size_t kCopied = 8;     // ids are copied by so many

    // An entry, of which only as much is there as is used.
    struct Entry {
        uint32_t count, length;
        uint32_t ids[1];  // then the bytes of the piece
    };

    // Room for `words` of 4 bytes, and half of `slots`, a power of two, long pieces.
    PieceLog(size_t words, size_t slots)
        : entries_((words + kCopied) * 4), slots_(slots * 8), words_(words), mask_(slots - 1), room_(slots / 2) {}

    static uint64_t hash(std::string_view piece) { return hash_bytes(piece); }

    // Asks for the memory that a piece is searched in, and once that is here, for what it is compared with.
    void prefetch_slot(uint64_t hash) const { prefetch_line(slots() + (hash & mask_)); }
    void prefetch_entry(uint64_t hash) const {
        prefetch_line(&entry(static_cast<uint32_t>(slots()[hash & mask_].load(std::memory_order_relaxed))));
    }

    const Entry& entry(uint32_t place) const {
        return *reinterpret_cast<const Entry*>(static_cast<const uint32_t*>(entries_.data()) + place);
    }

    // The entry of a long piece, or nullptr.
    const Entry* find(std::string_view piece, uint64_t hash) const {
        for (uint64_t at = hash & mask_;; at = (at + 1) & mask_) {
            const uint64_t slot = slots()[at].load(std::memory_order_acquire);
            if (slot == 0) return nullptr;
            if (slot >> 32 != hash >> 32) continue;
            const Entry& found = entry(static_cast<uint32_t>(slot));
            if (found.length == piece.size() && std::memcmp(found.ids + found.count, piece.data(), piece.size()) == 0) return &found;
        }
    }

    // Writes the ids of an entry to `out`, which has room for kCopied - 1 more, and returns how many count.
    static size_t copy(const Entry& entry, uint32_t* out) {
        for (size_t i = 0; i < entry.count; i += kCopied) std::memcpy(out + i, entry.ids + i, kCopied * 4);
        return entry.count;
    }

    // Where the ids of a piece, and its bytes, are from now on; 0: nowhere, there is no room.
    uint32_t append(const uint32_t* ids, size_t count, std::string_view piece) {
        const size_t size = 2 + count + (piece.size() + 3) / 4;
        const size_t place = used_.fetch_add(size, std::memory_order_relaxed);
        if (place + size > words_) return 0;
        Entry& entry = const_cast<Entry&>(this->entry(static_cast<uint32_t>(place)));
        entry.count = static_cast<uint32_t>(count);
        entry.length = static_cast<uint32_t>(piece.size());
        std::memcpy(entry.ids, ids, count * 4);
        std::memcpy(entry.ids + count, piece.data(), piece.size());
        return static_cast<uint32_t>(place);
    }

    // Remembers a long piece that is not here yet. Two threads may add the same one: the second entry is never found.
    void learn(std::string_view piece, uint64_t hash, const uint32_t* ids, size_t count) {
        if (piece.size() > kLongest || room_.load(std::memory_order_relaxed) <= 0) return;
        const uint32_t place = append(ids, count, piece);
        if (place == 0) return;
        room_.fetch_sub(1, std::memory_order_relaxed);
        const uint64_t slot = hash >> 32 << 32 | place;
        for (uint64_t at = hash & mask_;; at = (at + 1) & mask_) {
            uint64_t found = slots()[at].load(std::memory_order_relaxed);
            if (found == 0 && slots()[at].compare_exchange_strong(found, slot, std::memory_order_release)) return;
        }
    }

  private:
    using Slot = std::atomic<uint64_t>;  // the upper half of the hash, and the entry's place; 0: empty
    Slot* slots() const { return static_cast<Slot*>(slots_.data()); }

    Pages entries_, slots_;
    size_t words_, mask_;
    std::atomic<size_t> used_ = 1;  // words; no entry is at 0
    std::atomic<ptrdiff_t> room_;
};

}  // namespace llmfast
