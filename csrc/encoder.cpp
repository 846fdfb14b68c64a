#include "encoder.h"

#include <algorithm>

namespace llmfast {
namespace {

constexpr size_t kBatch = 256;  // pieces between asking for a slot's memory and reading it

inline void prefetch(const void* at) {
#if defined(__GNUC__)
    __builtin_prefetch(at);
#endif
}

}  // namespace

struct Encoder::Batch {
    size_t count;
    uint32_t ends[kBatch];
    uint32_t slots[kBatch];
    Key keys[kBatch];
};

// The ids of a piece that the table does not hold.
size_t Encoder::encode_unknown(std::string_view piece, uint32_t* out, bool look_up, MergeScratch& scratch) const {
    if (look_up) {
        out[0] = vocabulary_.find(piece);
        if (out[0] != kNoToken) return 1;
    }
    return merge(vocabulary_, pairs_, piece, out, scratch);
}

size_t Encoder::encode_piece(std::string_view piece, IdBuffer& ids, bool look_up) const {
    if (piece.empty()) return 0;
    MergeScratch scratch;
    const size_t count = encode_unknown(piece, ids.room(piece.size()), look_up, scratch);
    ids.grow(count);
    return count;
}

size_t Encoder::encode_batch(const char* text, const char* text_end, const Batch& batch, IdBuffer& ids,
                             MergeScratch& scratch) const {
    uint32_t* const begin = ids.room(batch.ends[batch.count - 1] + kMostIds);
    uint32_t* out = begin;
    uint32_t start = 0;
    size_t last = 0;
    for (size_t i = 0; i < batch.count; ++i) {
        const std::string_view piece(text + start, batch.ends[i] - start);
        start = batch.ends[i];
        if (piece.size() > kLongestShortKey) {
            last = encode_unknown(piece, out, true, scratch);
        } else if (const PieceTable::Slot* slot = pieces_.find(batch.keys[i], batch.slots[i])) {
            last = PieceTable::copy(*slot, out);
        } else {
            last = merge(vocabulary_, pairs_, piece, out, scratch);
            if (last <= kMostIds) pieces_.learn(batch.keys[i], out, last);
        }
        out += last;
    }
    ids.grow(static_cast<size_t>(out - begin));
    return last;
}

size_t Encoder::encode(std::string_view text, IdBuffer& ids) const {
    MergeScratch scratch;
    Batch batch;
    const char* at = text.data();
    const char* const text_end = at + text.size();
    size_t last = 0;
    ids.reserve(ids.size() + text.size() / 4 + kMostIds);
    while (at < text_end) {
        batch.count = split(pattern_, at, static_cast<size_t>(text_end - at), batch.ends, kBatch);
        uint32_t start = 0;
        for (size_t i = 0; i < batch.count; ++i) {
            const size_t length = batch.ends[i] - start;
            if (length <= kLongestShortKey) {
                const Key key = short_key(at + start, length, text_end - (at + start) >= 16);
                batch.keys[i] = key;
                batch.slots[i] = static_cast<uint32_t>(pieces_.index(key));
                prefetch(pieces_.slot(batch.slots[i]));
            }
            start = batch.ends[i];
        }
        last = encode_batch(at, text_end, batch, ids, scratch);
        at += start;
    }
    return last;
}

}  // namespace llmfast
