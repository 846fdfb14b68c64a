// The cache of long pieces, which also holds the ids of short pieces that have too many for their slot. Entries are
// stored one after another; a hash table finds those of long pieces.
//
// Entries are written once and never changed: any number of threads read and insert without a lock. A piece is only
// ever searched in the kProbes slots of its bucket; a full bucket, or full memory, takes no more.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "system/hash.h"
#include "system/pages.h"
#include "system/prefetch.h"

namespace llmfast {

class LongPieceCache {
  public:
    static constexpr size_t kLongest = 255;  // bytes: longer pieces are hardly ever seen again
    static constexpr size_t kCopied = 8;     // ids are copied in groups of this many
    static constexpr size_t kProbes = 16;    // slots: a cache line

    // An entry is followed by its ids, and these by the bytes of a long piece.
    struct Entry {
        uint32_t count, length;
        const uint32_t* ids() const { return reinterpret_cast<const uint32_t*>(this + 1); }
        const uint32_t* bytes() const { return ids() + count; }
    };

    // A table of `slots`, a power of two and at least kProbes, for long pieces.
    explicit LongPieceCache(size_t slots)
        : entries_((kWords + kCopied) * sizeof(uint32_t)), slots_(slots * sizeof(Slot)), mask_(slots - 1) {}

    static uint64_t hash(std::string_view piece) { return hash_bytes(piece.substr(0, kLongest)); }

    // Prefetches the slots that a piece is searched in, and once they are in the cache, the entry it is compared with.
    void prefetch_slot(uint64_t hash) const { prefetch_line(&slot(hash, 0)); }
    void prefetch_entry(uint64_t hash) const {
        prefetch_line(&entry(slot(hash, 0).load(std::memory_order_relaxed) % kWords));
    }

    const Entry& entry(uint32_t place) const {
        return *reinterpret_cast<const Entry*>(static_cast<const uint32_t*>(entries_.data()) + place);
    }

    // The entry of a long piece, or nullptr.
    const Entry* find(std::string_view piece, uint64_t hash) const {
        for (size_t i = 0; i < kProbes; ++i) {
            const uint32_t found = slot(hash, i).load(std::memory_order_acquire);
            if (found == 0) return nullptr;
            if (found / kWords != tag(hash)) continue;
            const Entry& known = entry(found % kWords);
            if (known.length == piece.size() && std::memcmp(known.bytes(), piece.data(), piece.size()) == 0)
                return &known;
        }
        return nullptr;
    }

    // Writes the ids of an entry to `out`, which has room for kCopied - 1 more, and returns how many ids it has.
    static size_t copy(const Entry& entry, uint32_t* out) {
        for (size_t i = 0; i < entry.count; i += kCopied) std::memcpy(out + i, entry.ids() + i, kCopied * sizeof *out);
        return entry.count;
    }

    // Stores the ids and bytes of a piece, and returns the place of the entry; 0 if there is no room.
    uint32_t append(const uint32_t* ids, size_t count, std::string_view piece) {
        const size_t size = sizeof(Entry) / sizeof *ids + count + (piece.size() + 3) / 4;
        if (used_.load(std::memory_order_relaxed) + size > kWords) return 0;
        const size_t place = used_.fetch_add(size, std::memory_order_relaxed);
        if (place + size > kWords) return 0;  // other threads took what there was
        uint32_t* const at = static_cast<uint32_t*>(entries_.data()) + place;
        const Entry entry = {static_cast<uint32_t>(count), static_cast<uint32_t>(piece.size())};
        std::memcpy(at, &entry, sizeof entry);
        std::memcpy(at + 2, ids, count * sizeof *ids);
        if (!piece.empty()) std::memcpy(at + 2 + count, piece.data(), piece.size());
        return static_cast<uint32_t>(place);
    }

    // Inserts a long piece that is not cached yet, if there is room. If two threads insert the same piece, the second
    // entry is never found. `piece` must not change during the call.
    void insert(std::string_view piece, uint64_t hash, const uint32_t* ids, size_t count) {
        if (piece.size() > kLongest) return;
        size_t i = 0;
        while (i < kProbes && slot(hash, i).load(std::memory_order_relaxed) != 0) ++i;
        if (i == kProbes) return;
        const uint32_t place = append(ids, count, piece);
        if (place == 0) return;
        for (; i < kProbes; ++i) {
            uint32_t empty = 0;
            if (slot(hash, i).compare_exchange_strong(empty, tag(hash) * kWords + place, std::memory_order_release))
                return;
        }
    }

  private:
    static constexpr uint32_t kWords = 1 << 23;  // of 4 bytes: 32 MB, of which only what is used is touched
    using Slot = std::atomic<uint32_t>;          // the upper 9 bits of the hash, and the place of the entry; 0: empty

    static uint32_t tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 55); }
    Slot& slot(uint64_t hash, size_t probe) const { return static_cast<Slot*>(slots_.data())[(hash & mask_) ^ probe]; }

    Pages entries_, slots_;
    size_t mask_;
    std::atomic<size_t> used_ = 1;  // words; no entry is at 0
};

}  // namespace llmfast
