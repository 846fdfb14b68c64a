#include "encode/encoder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>
#include <utility>

#include "system/cpu_features.h"
#include "system/interrupt.h"
#include "system/parallel.h"
#include "system/prefetch.h"
#include "system/termination.h"

namespace llmfast {
namespace {

constexpr size_t kBatch = 256;  // pieces whose slots are prefetched before the first is read
constexpr size_t kMostUnknowns = 2 * kBatch;
constexpr size_t kBatchesTogether = 8;  // unknown pieces are merged in batches, to overlap cache misses
constexpr size_t kLongSlots = 1 << 19;  // 2 MB

// Slots for a vocabulary's short tokens and for pieces to be cached: 50 MB of prose have 150,000 that are not tokens.
size_t slots_for(size_t tokens) {
    const size_t room = tokens < (1 << 15) ? 1 << 16 : 1 << 18;
    return std::bit_ceil(tokens * 2 + room);
}

// Slots for pieces that come when those are full: 57 MB of text in many languages have 600,000 that are not tokens.
size_t more_slots_for(size_t tokens) { return std::min(4 * slots_for(tokens), size_t{1} << 21); }

}  // namespace

struct Encoder::Batch {
    size_t count;
    uint32_t ends[kBatch];
    uint32_t slots[kBatch];
    Key keys[kBatch];  // for a long piece: its hash, and kNoKey
    std::string_view piece(const char* text, size_t i) const {
        const uint32_t start = i == 0 ? 0 : ends[i - 1];
        return {text + start, ends[i] - start};
    }
};

// Pieces that are not cached. Their parts are kept among the ids until there are enough to be merged together. The
// bytes are copies, those of short pieces as keys, since the text may change before its pieces are inserted into a
// cache.
struct Encoder::Unknowns {
    struct One {
        Key key;
        size_t begin, length;  // of a long piece, in `copied`
        size_t at, parts;      // where among the ids, and how many
    };
    size_t count = 0;
    size_t batches = 0;  // since they were last merged
    size_t last = 0;     // how many tokens the last piece has
    One all[kMostUnknowns];
    Piece pieces[kMostUnknowns];
    ByteBuffer copied;
    std::optional<MergeScratch> scratch;  // made when it is first needed: most short texts are known

    // Adds a piece, and returns the bytes that will be inserted into a cache.
    std::string_view add(std::string_view piece, const Key& key, size_t at) {
        One& one = all[count++] = {key, copied.size(), piece.size(), at, 0};
        if (key.high == kNoKey) {
            copy_in_windows(piece.data(), piece.size(), copied.prepare(piece.size()));
            copied.commit(piece.size());
        }
        return bytes(one);
    }

    std::string_view bytes(const One& one) const {
        return one.key.high == kNoKey ? std::string_view(copied.data() + one.begin, one.length) : bytes_of(one.key);
    }
};

Encoder::Encoder(Vocabulary vocabulary, Pattern pattern)
    : vocabulary_(std::move(vocabulary)),
      short_pieces_(slots_for(vocabulary_.size())),
      more_short_pieces_(more_slots_for(vocabulary_.size())),
      long_pieces_(kLongSlots),
      pattern_(pattern) {
    run_parallel(2, std::thread::hardware_concurrency(), [this](size_t table, size_t) {
        if (table == 0) {
            pairs_.emplace(vocabulary_);
        } else {
            insert_tokens();
        }
    });
}

// Inserts the vocabulary into the cache of short pieces, in groups whose slots are prefetched.
void Encoder::insert_tokens() {
    constexpr size_t kAtOnce = 32;
    Key keys[kAtOnce];
    uint32_t ids[kAtOnce];
    size_t count = 0;
    const auto insert_all = [&] {
        for (size_t i = 0; i < count; ++i) has_all_tokens_ &= short_pieces_.insert(keys[i], &ids[i], 1);
        count = 0;
    };
    InterruptCounter counter;
    for (size_t at = 0; at < vocabulary_.size(); ++at) {
        counter.add(1);
        const std::string_view token = vocabulary_.token(at);
        if (token.size() > kLongestShortKey) continue;
        keys[count] = short_key(token.data(), token.size(), false);
        prefetch_line(short_pieces_.slot(short_pieces_.index(keys[count])));
        ids[count++] = vocabulary_.id(at);
        if (count == kAtOnce) insert_all();
    }
    insert_all();
}

// Caches the ids of a piece whose key, or for a long piece hash, is `key`.
void Encoder::insert(std::string_view piece, const Key& key, const Piece& merged) const {
    if (key.high == kNoKey) {
        if (!long_pieces_.find(piece, key.low)) long_pieces_.insert(piece, key.low, merged.ids, merged.count);
        return;
    }
    ShortPieceCache& cache = short_pieces_.is_full() ? more_short_pieces_ : short_pieces_;
    if (cache.is_full() || cache.find(key, cache.index(key))) return;
    const bool fits = merged.count <= ShortPieceCache::kMostIds;
    const uint32_t place = fits ? 0 : long_pieces_.append(merged.ids, merged.count, {});
    if (fits || place) cache.insert(key, merged.ids, merged.count, place);
}

size_t Encoder::encode_piece(std::string_view piece, IdBuffer& ids, bool look_up) const {
    if (piece.empty()) return 0;
    if (piece.size() > kLongestPiece) throw_piece_too_long(piece.size());
    uint32_t* const out = ids.prepare(piece.size());
    Piece merged = {out, 1};
    if (look_up) out[0] = vocabulary_.find(piece);
    if (!look_up || out[0] == kNoToken) {
        MergeScratch scratch;
        merged.count = parts_of(*pairs_, piece, out);
        merge_parts(*pairs_, {&merged, 1}, scratch);
    }
    ids.commit(merged.count);
    return merged.count;
}

// Writes the ids of a piece that is not in the first slot of its bucket, and returns how many; 0 if it is not cached.
LLMFAST_NOINLINE size_t Encoder::look_up(std::string_view piece, const Key& key, size_t index, uint32_t* out) const {
    if (key.high != kNoKey) {
        if (const ShortPieceCache::Slot* const slot = short_pieces_.find(key, index)) return copy(*slot, out);
        if (short_pieces_.is_full()) {
            const ShortPieceCache::Slot* const slot = more_short_pieces_.find(key, more_short_pieces_.index(key));
            if (slot) return copy(*slot, out);
        }
        if (has_all_tokens_) return 0;
        out[0] = vocabulary_.find(bytes_of(key));
        return out[0] != kNoToken;
    }
    if (const LongPieceCache::Entry* const entry = long_pieces_.find(piece, key.low))
        return LongPieceCache::copy(*entry, out);
    out[0] = vocabulary_.find(piece);
    if (out[0] == kNoToken) return 0;
    long_pieces_.insert(vocabulary_.bytes(out[0]), key.low, out, 1);
    return 1;
}

// Writes the ids of a short piece, and returns how many.
inline size_t Encoder::copy(const ShortPieceCache::Slot& slot, uint32_t* out) const {
    const size_t count = ShortPieceCache::copy(slot, out);
    if (count > ShortPieceCache::kMostIds) LongPieceCache::copy(long_pieces_.entry(slot.ids[1]), out);
    return count;
}

// Writes the parts of an unknown piece, which will stand at `at` among the ids, and returns how many.
LLMFAST_NOINLINE size_t Encoder::add_unknown(std::string_view piece, const Key& key, size_t at, uint32_t* out,
                                             Unknowns& unknowns) const {
    const size_t count = parts_of(*pairs_, unknowns.add(piece, key, at), out);
    unknowns.all[unknowns.count - 1].parts = count;
    return count;
}

// Appends the ids of the batch, and the parts of its unknown pieces.
inline void Encoder::encode_batch(const char* text, const Batch& batch, IdBuffer& ids, Unknowns& unknowns) const {
    uint32_t* const begin = ids.prepare(batch.ends[batch.count - 1] + LongPieceCache::kCopied);
    uint32_t* out = begin;
    size_t count = 0;
    const ShortPieceCache::Slot* const slots = short_pieces_.slot(0);
    for (size_t i = 0, all = batch.count; i < all; ++i) {
        const ShortPieceCache::Slot& slot = slots[batch.slots[i]];
        if (ShortPieceCache::has(slot, batch.keys[i])) [[likely]] {
            count = copy(slot, out);
        } else {
            const std::string_view piece = batch.piece(text, i);
            count = look_up(piece, batch.keys[i], batch.slots[i], out);
            if (count == 0) {
                const size_t at = ids.size() + static_cast<size_t>(out - begin);
                count = add_unknown(piece, batch.keys[i], at, out, unknowns);
            }
        }
        out += count;
    }
    unknowns.last = count;
    ++unknowns.batches;
    ids.commit(static_cast<size_t>(out - begin));
}

// Merges the parts of the unknown pieces in place among the ids, closes the gaps, and caches the pieces.
void Encoder::merge_pending(Unknowns& unknowns, IdBuffer& ids) const {
    check_interrupt();
    const size_t count = std::exchange(unknowns.count, 0);
    unknowns.batches = 0;
    if (count == 0) return;
    const Unknowns::One* const all = unknowns.all;
    uint32_t* const begin = ids.data();
    for (size_t i = 0; i < count; ++i) unknowns.pieces[i] = {begin + all[i].at, all[i].parts};
    const std::span<const Piece> merged(unknowns.pieces, count);
    if (!unknowns.scratch) unknowns.scratch.emplace();
    merge_parts(*pairs_, {unknowns.pieces, count}, *unknowns.scratch);
    const bool is_last = all[count - 1].at + all[count - 1].parts == ids.size();
    if (is_last) unknowns.last = merged.back().count;
    uint32_t* out = begin + all[0].at;
    for (size_t i = 0; i < count; ++i) {
        insert(unknowns.bytes(all[i]), all[i].key, merged[i]);
        const size_t behind = all[i].at + all[i].parts, next = i + 1 < count ? all[i + 1].at : ids.size();
        out = copy_in_windows(merged[i].ids, merged[i].count, out);
        out = copy_in_windows(begin + behind, next - behind, out);
    }
    ids.truncate(static_cast<size_t>(out - begin));
    unknowns.copied.clear();
}

// Fills a batch with the next pieces of `text`, and prefetches the slots that they will be looked up in.
inline void Encoder::fill(Batch& batch, std::string_view text) const {
    batch.count = split(pattern_, text.data(), text.size(), batch.ends, kBatch);
    const ShortPieceCache::Slot* const slots = short_pieces_.slot(0);
    const HashSecret secret = kHashSecret;  // a copy, which the compiler can keep in registers
    uint64_t long_ones[kBatch];
    size_t long_count = 0;
    int64_t start = 0;
    const int64_t last_readable = static_cast<int64_t>(text.size()) - 16;
    for (size_t i = 0, all = batch.count; i < all; ++i) {
        const size_t length = static_cast<size_t>(batch.ends[i] - start);
        const char* const piece = text.data() + start;
        const bool readable = start <= last_readable;
        start = batch.ends[i];
        if (length <= kLongestShortKey) [[likely]] {
            const Key key = short_key(piece, length, readable);
            batch.keys[i] = key;
            batch.slots[i] = static_cast<uint32_t>(short_pieces_.index(key, secret));
            prefetch_line(slots + batch.slots[i]);
        } else {
            if (length > kLongestPiece) throw_piece_too_long(length);
            const uint64_t hash = LongPieceCache::hash({piece, length});
            batch.keys[i] = {hash, kNoKey};
            batch.slots[i] = 0;
            long_pieces_.prefetch_slot(hash);
            long_ones[long_count++] = hash;
        }
    }
    for (size_t i = 0; i < long_count; ++i) long_pieces_.prefetch_entry(long_ones[i]);
}

// Encodes the next batch and removes it from `text`.
inline void Encoder::encode_some(std::string_view& text, Batch& batch, IdBuffer& ids, Unknowns& unknowns) const {
    fill(batch, text);
    encode_batch(text.data(), batch, ids, unknowns);
    text.remove_prefix(batch.ends[batch.count - 1]);
}

LLMFAST_AVX2 void Encoder::encode_some_avx2(std::string_view& text, Batch& batch, IdBuffer& ids,
                                            Unknowns& unknowns) const {
    encode_some(text, batch, ids, unknowns);
}

inline void Encoder::encode_next(std::string_view& text, Batch& batch, IdBuffer& ids, Unknowns& unknowns) const {
    has_avx2() ? encode_some_avx2(text, batch, ids, unknowns) : encode_some(text, batch, ids, unknowns);
}

// Whether the next batch might have more unknown pieces than there is room for, or there were enough batches.
bool Encoder::is_time_to_merge(const Unknowns& unknowns) {
    return unknowns.count > kMostUnknowns - kBatch || unknowns.batches == kBatchesTogether;
}

size_t Encoder::encode(std::string_view text, IdBuffer& ids) const {
    Unknowns unknowns;
    Batch batch;
    // For the ids that text usually has, and for those that one more batch could have.
    if (ids.size() == 0)
        ids.reserve(std::min(text.size(), usual_ids(text.size()) + 4 * kBatch) + LongPieceCache::kCopied);
    Decreasing left(text.size() + 1);
    while (!text.empty()) {
        left.require(text.size());
        encode_next(text, batch, ids, unknowns);
        if (is_time_to_merge(unknowns) || text.empty()) merge_pending(unknowns, ids);
    }
    return unknowns.last;
}

size_t Encoder::count(std::string_view text) const {
    Unknowns unknowns;
    Batch batch;
    IdBuffer ids;
    size_t total = 0;
    Decreasing left(text.size() + 1);
    while (!text.empty()) {
        left.require(text.size());
        encode_next(text, batch, ids, unknowns);
        if (!is_time_to_merge(unknowns) && !text.empty()) continue;
        merge_pending(unknowns, ids);
        total += ids.size();
        ids.clear();
    }
    return total;
}

}  // namespace llmfast
