#include "encoder.h"

#include <algorithm>
#include <bit>
#include <thread>
#include <utility>

#include "newer_machines.h"
#include "parallel.h"
#include "prefetch.h"

namespace llmfast {
namespace {

constexpr size_t kBatch = 256;              // pieces between asking for a slot's memory and reading it
constexpr size_t kMostUnknowns = 2 * kBatch;
constexpr size_t kBatchesTogether = 8;      // merge the unknown pieces of so many: fewer would wait for memory one by one
constexpr size_t kLongSlots = 1 << 19;      // 2 MB

// Slots for a vocabulary's short tokens and for pieces to be learnt: 50 MB of prose have 150,000 that are no token.
size_t slots_for(size_t tokens) {
    const size_t room = tokens < (1 << 15) ? 1 << 16 : 1 << 18;
    return std::bit_ceil(tokens * 2 + room);
}

}  // namespace

struct Encoder::Batch {
    size_t count;
    uint32_t ends[kBatch];
    uint32_t slots[kBatch];
    Key keys[kBatch];  // of a long piece: its hash, and kNoKey
    std::string_view piece(const char* text, size_t i) const {
        const uint32_t start = i == 0 ? 0 : ends[i - 1];
        return {text + start, ends[i] - start};
    }
};

// Pieces that no table holds. Their parts stand among the ids until there are enough to be merged together.
struct Encoder::Unknowns {
    struct One {
        const char* text;
        size_t length;
        size_t at, parts;  // where among the ids, and how many
    };
    size_t count = 0;
    size_t batches = 0;    // since they were merged last
    size_t last = 0;       // how many tokens the last piece has
    One all[kMostUnknowns];
    Piece pieces[kMostUnknowns];
    std::optional<MergeScratch> scratch;  // made when it is first needed: most short texts are known
};

Encoder::Encoder(Vocabulary vocabulary, Pattern pattern)
    : vocabulary_(std::move(vocabulary)),
      short_pieces_(slots_for(vocabulary_.size())),
      log_(kLongSlots),
      pattern_(pattern) {
    run_parallel(2, std::thread::hardware_concurrency(), [this](size_t table, size_t) {
        if (table == 0) {
            pairs_.emplace(vocabulary_);
        } else {
            learn_tokens();
        }
    });
}

// Fills the table of short pieces with the vocabulary, some tokens at a time while their slots are fetched.
void Encoder::learn_tokens() {
    constexpr size_t kAtOnce = 32;
    Key keys[kAtOnce];
    uint32_t ids[kAtOnce];
    size_t count = 0;
    for (uint32_t id = 0; id <= vocabulary_.largest_id(); ++id) {
        const std::string_view token = vocabulary_.bytes(id);
        if (!token.empty() && token.size() <= kLongestShortKey) {
            keys[count] = short_key(token.data(), token.size(), false);
            prefetch_line(short_pieces_.slot(short_pieces_.index(keys[count])));
            ids[count++] = id;
        }
        if (count < kAtOnce && id < vocabulary_.largest_id()) continue;
        for (size_t i = 0; i < count; ++i) short_pieces_.learn(keys[i], &ids[i], 1);
        count = 0;
    }
}

// Remembers what a piece is.
void Encoder::learn(std::string_view piece, const Piece& merged) const {
    if (piece.size() > kLongestShortKey) {
        const uint64_t hash = PieceLog::hash(piece);
        if (!log_.find(piece, hash)) log_.learn(piece, hash, merged.ids, merged.count);
        return;
    }
    const Key key = short_key(piece.data(), piece.size(), false);
    if (short_pieces_.is_full() || short_pieces_.find(key, short_pieces_.index(key))) return;
    const bool fits = merged.count <= ShortPieces::kMostIds;
    const uint32_t place = fits ? 0 : log_.append(merged.ids, merged.count, {});
    if (fits || place) short_pieces_.learn(key, merged.ids, merged.count, place);
}

size_t Encoder::encode_piece(std::string_view piece, IdBuffer& ids, bool look_up) const {
    if (piece.empty()) return 0;
    uint32_t* const out = ids.room(piece.size());
    Piece merged = {out, 1};
    if (look_up) out[0] = vocabulary_.find(piece);
    if (!look_up || out[0] == kNoToken) {
        MergeScratch scratch;
        merged.count = parts_of(*pairs_, piece, out);
        merge_parts(*pairs_, {&merged, 1}, scratch);
    }
    ids.grow(merged.count);
    return merged.count;
}

// Writes the ids of a piece that is not in the first slot it could be in, and returns how many; 0 if it is unknown.
size_t Encoder::look_up(std::string_view piece, const Key& key, size_t index, uint32_t* out) const {
    if (piece.size() <= kLongestShortKey) {
        const ShortPieces::Slot* const slot = short_pieces_.find(key, index);
        return slot ? copy(*slot, out) : 0;
    }
    if (const PieceLog::Entry* const entry = log_.find(piece, key.low)) return PieceLog::copy(*entry, out);
    out[0] = vocabulary_.find(piece);
    if (out[0] == kNoToken) return 0;
    log_.learn(piece, key.low, out, 1);
    return 1;
}

// Writes the ids of a short piece, and returns how many.
inline size_t Encoder::copy(const ShortPieces::Slot& slot, uint32_t* out) const {
    const size_t count = ShortPieces::copy(slot, out);
    if (count > ShortPieces::kMostIds) PieceLog::copy(log_.entry(slot.ids[1]), out);
    return count;
}

// Appends the ids of the batch, and the parts of its unknown pieces.
inline void Encoder::encode_batch(const char* text, const Batch& batch, IdBuffer& ids, Unknowns& unknowns) const {
    uint32_t* const begin = ids.room(batch.ends[batch.count - 1] + PieceLog::kCopied);
    uint32_t* out = begin;
    size_t count = 0;
    const ShortPieces::Slot* const slots = short_pieces_.slot(0);
    for (size_t i = 0, all = batch.count; i < all; ++i) {
        const ShortPieces::Slot& slot = slots[batch.slots[i]];
        if (ShortPieces::has(slot, batch.keys[i])) [[likely]] {
            count = copy(slot, out);
        } else {
            const std::string_view piece = batch.piece(text, i);
            count = look_up(piece, batch.keys[i], batch.slots[i], out);
            if (count == 0) {
                count = parts_of(*pairs_, piece, out);
                const size_t at = ids.size() + static_cast<size_t>(out - begin);
                unknowns.all[unknowns.count++] = {piece.data(), piece.size(), at, count};
            }
        }
        out += count;
    }
    unknowns.last = count;
    ++unknowns.batches;
    ids.grow(static_cast<size_t>(out - begin));
}

// Merges the parts of the unknown pieces, which stand among the ids, and closes the gaps.
void Encoder::settle(Unknowns& unknowns, IdBuffer& ids) const {
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
        learn({all[i].text, all[i].length}, merged[i]);
        const size_t behind = all[i].at + all[i].parts, next = i + 1 < count ? all[i + 1].at : ids.size();
        out = std::copy_n(merged[i].ids, merged[i].count, out);
        out = std::copy(begin + behind, begin + next, out);
    }
    ids.cut(static_cast<size_t>(out - begin));
}

// Splits off the next pieces of `text`, and asks for the memory that they will be looked up in.
inline void Encoder::fill(Batch& batch, std::string_view text) const {
    batch.count = split(pattern_, text.data(), text.size(), batch.ends, kBatch);
    const ShortPieces::Slot* const slots = short_pieces_.slot(0);
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
            batch.slots[i] = static_cast<uint32_t>(short_pieces_.index(key));
            prefetch_line(slots + batch.slots[i]);
        } else {
            const uint64_t hash = PieceLog::hash({piece, length});
            batch.keys[i] = {hash, kNoKey};
            batch.slots[i] = 0;
            log_.prefetch_slot(hash);
            long_ones[long_count++] = hash;
        }
    }
    for (size_t i = 0; i < long_count; ++i) log_.prefetch_entry(long_ones[i]);
}

// Takes the next pieces off `text`.
inline void Encoder::encode_some(std::string_view& text, Batch& batch, IdBuffer& ids, Unknowns& unknowns) const {
    fill(batch, text);
    encode_batch(text.data(), batch, ids, unknowns);
    text.remove_prefix(batch.ends[batch.count - 1]);
}

LLMFAST_NEWER void Encoder::encode_some_newer(std::string_view& text, Batch& batch, IdBuffer& ids,
                                              Unknowns& unknowns) const {
    encode_some(text, batch, ids, unknowns);
}

size_t Encoder::encode(std::string_view text, IdBuffer& ids) const {
    Unknowns unknowns;
    Batch batch;
    // Room for what text usually has, and for all that one more batch could have.
    if (ids.size() == 0) ids.reserve(std::min(text.size(), usual_ids(text.size()) + 4 * kBatch) + PieceLog::kCopied);
    while (!text.empty()) {
        is_newer() ? encode_some_newer(text, batch, ids, unknowns) : encode_some(text, batch, ids, unknowns);
        const bool is_full = unknowns.count > kMostUnknowns - kBatch || unknowns.batches == kBatchesTogether;
        if (is_full || text.empty()) settle(unknowns, ids);
    }
    return unknowns.last;
}

size_t Encoder::count(std::string_view text) const {
    Unknowns unknowns;
    Batch batch;
    IdBuffer ids;
    size_t total = 0;
    while (!text.empty()) {
        encode_some(text, batch, ids, unknowns);
        settle(unknowns, ids);
        total += ids.size();
        ids.clear();
    }
    return total;
}

}  // namespace llmfast
