#include "encoder.h"

#include <algorithm>
#include <bit>
#include <thread>

#include "parallel.h"
#include "prefetch.h"

namespace llmfast {
namespace {

constexpr size_t kBatch = 256;              // pieces between asking for a slot's memory and reading it
constexpr size_t kRoomToLearn = 1 << 16;    // short pieces beside the vocabulary's
constexpr size_t kMediumSlots = 1 << 17;    // 8 MB, of which only what is used is ever touched

}  // namespace

struct Encoder::Batch {
    size_t count;
    uint32_t ends[kBatch];
    uint32_t slots[kBatch];
    Key keys[kBatch];
    size_t unknown_count;
    Piece unknown[kBatch];       // pieces that no table holds, in the ids so far
    uint32_t which[kBatch];      // which pieces these are
};

Encoder::Encoder(Vocabulary vocabulary, Pattern pattern)
    : vocabulary_(std::move(vocabulary)),
      short_pieces_(std::bit_ceil(vocabulary_.size() * 2 + kRoomToLearn)),
      medium_pieces_(kMediumSlots),
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

// Writes the ids of a piece that the table of short pieces does not hold and returns how many; 0 if it is unknown.
size_t Encoder::look_up(std::string_view piece, uint32_t* out) const {
    if (piece.size() <= kLongestMediumKey) {
        const MediumKey key = medium_key(piece.data(), piece.size());
        const size_t index = medium_pieces_.index(key);
        if (const MediumPieces::Slot* slot = medium_pieces_.find(key, index)) return MediumPieces::copy(*slot, out);
    }
    if (piece.size() <= kLongestShortKey) return 0;
    out[0] = vocabulary_.find(piece);
    return out[0] != kNoToken;
}

// Remembers what a piece merged into.
void Encoder::learn(std::string_view piece, const Piece& merged) const {
    if (merged.count <= ShortPieces::kMostIds && piece.size() <= kLongestShortKey) {
        const Key key = short_key(piece.data(), piece.size(), false);
        if (!short_pieces_.find(key, short_pieces_.index(key))) short_pieces_.learn(key, merged.ids, merged.count);
    } else if (merged.count <= MediumPieces::kMostIds && piece.size() <= kLongestMediumKey) {
        const MediumKey key = medium_key(piece.data(), piece.size());
        if (!medium_pieces_.find(key, medium_pieces_.index(key))) medium_pieces_.learn(key, merged.ids, merged.count);
    }
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

// Appends the ids of the batch; returns how many the last piece has.
size_t Encoder::encode_batch(const char* text, Batch& batch, IdBuffer& ids, MergeScratch& scratch) const {
    uint32_t* const begin = ids.room(batch.ends[batch.count - 1] + MediumPieces::kMostIds);
    uint32_t* out = begin;
    uint32_t start = 0;
    size_t last = 0;
    batch.unknown_count = 0;
    for (size_t i = 0; i < batch.count; ++i) {
        const std::string_view piece(text + start, batch.ends[i] - start);
        start = batch.ends[i];
        const ShortPieces::Slot* slot = nullptr;
        if (piece.size() <= kLongestShortKey) slot = short_pieces_.find(batch.keys[i], batch.slots[i]);
        if (slot) {
            last = ShortPieces::copy(*slot, out);
        } else {
            last = look_up(piece, out);
            if (last == 0) {
                last = parts_of(*pairs_, piece, out);
                batch.unknown[batch.unknown_count] = {out, last};
                batch.which[batch.unknown_count++] = static_cast<uint32_t>(i);
            }
        }
        out += last;
    }
    if (batch.unknown_count > 0) {
        out = settle(text, batch, out, scratch);
        const size_t behind = batch.unknown_count - 1;
        if (batch.which[behind] == batch.count - 1) last = batch.unknown[behind].count;
    }
    ids.grow(static_cast<size_t>(out - begin));
    return last;
}

// Merges the parts of the unknown pieces, which stand among ids up to `end`, closes the gaps and returns the new end.
uint32_t* Encoder::settle(const char* text, Batch& batch, uint32_t* end, MergeScratch& scratch) const {
    size_t parts[kBatch];
    const std::span<Piece> unknown(batch.unknown, batch.unknown_count);
    for (size_t i = 0; i < unknown.size(); ++i) parts[i] = unknown[i].count;
    merge_parts(*pairs_, unknown, scratch);
    uint32_t* out = unknown[0].ids;
    for (size_t i = 0; i < unknown.size(); ++i) {
        const uint32_t start = batch.which[i] > 0 ? batch.ends[batch.which[i] - 1] : 0;
        learn({text + start, batch.ends[batch.which[i]] - start}, unknown[i]);
        const uint32_t* const behind = unknown[i].ids + parts[i];
        const uint32_t* const next = i + 1 < unknown.size() ? unknown[i + 1].ids : end;
        out = std::copy_n(unknown[i].ids, unknown[i].count, out);
        out = std::copy(behind, next, out);
    }
    return out;
}

// Splits off the next pieces of `text`, and asks for the memory that the short ones will be looked up in.
void Encoder::fill(Batch& batch, std::string_view text) const {
    batch.count = split(pattern_, text.data(), text.size(), batch.ends, kBatch);
    uint32_t start = 0;
    for (size_t i = 0; i < batch.count; ++i) {
        const size_t length = batch.ends[i] - start;
        if (length <= kLongestShortKey) {
            const Key key = short_key(text.data() + start, length, text.size() - start >= 16);
            batch.keys[i] = key;
            batch.slots[i] = static_cast<uint32_t>(short_pieces_.index(key));
            prefetch_line(short_pieces_.slot(batch.slots[i]));
        } else if (length <= kLongestMediumKey) {
            batch.slots[i] = static_cast<uint32_t>(medium_pieces_.index(medium_key(text.data() + start, length)));
            prefetch_line(medium_pieces_.slot(batch.slots[i]));
        }
        start = batch.ends[i];
    }
}

size_t Encoder::encode(std::string_view text, IdBuffer& ids) const {
    MergeScratch scratch;
    Batch batch;
    size_t last = 0;
    // Room for what text usually has, and for all that one more batch could have.
    if (ids.size() == 0) ids.reserve(std::min(text.size(), text.size() / 3 + 4 * kBatch) + MediumPieces::kMostIds);
    while (!text.empty()) {
        fill(batch, text);
        last = encode_batch(text.data(), batch, ids, scratch);
        text.remove_prefix(batch.ends[batch.count - 1]);
    }
    return last;
}

size_t Encoder::count(std::string_view text) const {
    MergeScratch scratch;
    Batch batch;
    IdBuffer ids;
    size_t total = 0;
    while (!text.empty()) {
        fill(batch, text);
        encode_batch(text.data(), batch, ids, scratch);
        total += ids.size();
        ids.clear();
        text.remove_prefix(batch.ends[batch.count - 1]);
    }
    return total;
}

}  // namespace llmfast
