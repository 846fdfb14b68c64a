#include "piece_table.h"

#include <algorithm>
#include <bit>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace llmfast {
namespace {

constexpr uint64_t kClaimed = ~0ull;  // a slot that is being written: no key has 255 bytes
constexpr size_t kHugePage = size_t{1} << 21;

// Zeroed memory; in huge pages where the system has them, since lookups are all over the table.
void* zeroed_pages(size_t bytes) {
    void* memory = ::operator new(bytes, std::align_val_t{kHugePage});
#if defined(__linux__)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    std::memset(memory, 0, bytes);
    return memory;
}

}  // namespace

PieceTable::PieceTable(const Vocabulary& vocabulary) {
    const size_t slots = std::bit_ceil(std::max<size_t>(vocabulary.size() * 2, 1 << 16));
    mask_ = slots - 1;
    slots_ = static_cast<Slot*>(zeroed_pages(slots * sizeof(Slot)));
    size_t tokens = 0;
    for (uint32_t id = 0; id <= vocabulary.largest_id(); ++id) {
        const std::string_view token = vocabulary.bytes(id);
        if (token.empty() || token.size() > kLongestShortKey) continue;
        put(short_key(token.data(), token.size(), false), &id, 1);
        ++tokens;
    }
    room_ = slots * 5 / 8 - tokens;
}

PieceTable::~PieceTable() { ::operator delete(slots_, std::align_val_t{kHugePage}); }

void PieceTable::learn(Key key, const uint32_t* ids, size_t count) {
    size_t room = room_.load(std::memory_order_relaxed);
    do {
        if (room == 0) return;
    } while (!room_.compare_exchange_weak(room, room - 1, std::memory_order_relaxed));
    put(key, ids, count);
}

void PieceTable::put(Key key, const uint32_t* ids, size_t count) {
    for (size_t at = index(key);; at = (at + 1) & mask_) {
        uint64_t empty = 0;
        Slot& slot = slots_[at];
        if (!slot.high.compare_exchange_strong(empty, kClaimed, std::memory_order_relaxed)) continue;
        slot.low = key.low;
        for (size_t i = 0; i < count; ++i) slot.ids[i] = ids[i];
        slot.ids[0] |= static_cast<uint32_t>(count) << 24;
        slot.high.store(key.high, std::memory_order_release);
        return;
    }
}

}  // namespace llmfast
