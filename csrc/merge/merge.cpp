#include "merge/merge.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "merge/merge_lanes.h"
#include "pretokenize/unicode.h"
#include "system/interrupt.h"

namespace llmfast {

bool byte_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out) {
    bool all = true;
    in_windows(piece.size(), [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            out[i] = pairs.byte(static_cast<uint8_t>(piece[i]));
            all &= out[i] != kNoToken;
        }
    });
    return all;
}

namespace {

[[noreturn]] void throw_no_token(const PairTable& pairs, std::string_view piece) {
    for (const char& byte : piece) {
        if (pairs.byte(static_cast<uint8_t>(byte)) != kNoToken) continue;
        throw std::invalid_argument("the vocabulary has no token for the byte " + printable({&byte, 1}));
    }
    throw std::logic_error("every byte is a token");
}

// Writes one token per character if merging certainly makes it, else one token per byte. It is certain if no token
// straddles either end of the character: then nothing outside of it can merge with a part of it. Returns 0 for a piece
// that is not UTF-8, where characters could end anywhere. `mark_cuts` adds kCut between characters that are adjacent in
// no token.
size_t character_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out, bool mark_cuts) {
    const uint8_t* const begin = reinterpret_cast<const uint8_t*>(piece.data());
    const uint8_t* const end = begin + piece.size();
    const uint8_t* at = begin;
    InterruptCounter counter;
    size_t count = 0;
    bool free_before = true;
    uint32_t cut = 0, before = 0;
    while (at < end) {
        uint32_t point = *at;
        const size_t size = point < 0x80 ? 1 : multibyte_length(at, end, point);
        if (size == 0) return 0;
        counter.add(size);
        if (mark_cuts) {
            const bool may_merge =
                at == begin || !free_before || (before | point) < 0x80 || pairs.may_adjoin(before, point);
            cut = may_merge ? 0 : kCut;
            before = point;
        }
        const bool free_behind = at + size == end || !pairs.straddles(at[size - 1], at[size]);
        const uint32_t whole = size > 1 && free_before && free_behind ? pairs.character(point) : kNoToken;
        if (whole != kNoToken) {
            out[count++] = whole | cut;
        } else {
            const std::string_view bytes(reinterpret_cast<const char*>(at), size);
            if (!byte_tokens(pairs, bytes, out + count)) throw_no_token(pairs, bytes);
            out[count] |= cut;
            count += size;
        }
        free_before = free_behind;
        at += size;
    }
    return count;
}

bool is_ascii(std::string_view piece) {
    uint64_t all = 0, word = 0;
    if (piece.size() >= 8) {
        in_windows(piece.size() / 8, [&](size_t begin, size_t end) {
            for (const char* at = piece.data() + 8 * begin; at < piece.data() + 8 * end; at += 8) {
                std::memcpy(&word, at, 8);
                all |= word;
            }
        });
        std::memcpy(&word, piece.data() + piece.size() - 8, 8);
        all |= word;
    } else {
        for (const char byte : piece) all |= static_cast<uint8_t>(byte);
    }
    return (all & 0x8080808080808080) == 0;
}

// Where the stretch that begins at `from` ends: at the end of the piece or at a cut, if possible before the stretch
// becomes too long for a lane.
size_t end_of_stretch(const uint32_t* ids, size_t from, size_t parts) {
    if (parts - from <= kMostLaneParts) return parts;
    size_t last = 0;
    InterruptCounter counter;
    for (size_t at = from + 1; at < parts; ++at) {
        counter.add(1);
        if (last != 0 && at - from > kMostLaneParts) return last;
        if (ids[at] & kCut) last = at;
    }
    return last != 0 && parts - from > kMostLaneParts ? last : parts;
}

// Collects stretches of pieces and merges them together; nothing merges across the ends of a stretch.
class Stretches {
  public:
    Stretches(const PairTable& pairs, MergeScratch& scratch) : pairs_(pairs), scratch_(scratch) {}

    // Adds a stretch, whose ids will be appended to `piece` when it has been merged.
    void add(uint32_t* ids, size_t count, Piece& piece) {
        if (count_ == kMost) merge();
        ids[0] &= ~kCut;
        all_[count_] = {ids, count};
        pieces_[count_++] = &piece;
    }

    void merge() {
        check_interrupt();
        Piece* ordered[kMost];
        size_t ends[kMostLaneParts + 2] = {};  // of those with so many parts, or more
        for (size_t i = 0; i < count_; ++i) ++ends[class_of(all_[i])];
        size_t end = 0;
        for (size_t& each : ends) end += std::exchange(each, end);
        for (size_t i = 0; i < count_; ++i) ordered[ends[class_of(all_[i])]++] = &all_[i];
        size_t done = ends[1];  // those of one part
        if (ends[kMostLaneParts] - done >= kWorthLanes) {
            best_lane_merger()(pairs_.places(), {ordered + done, ordered + ends[kMostLaneParts]});
            done = ends[kMostLaneParts];
        }
        for (; done < count_; ++done) {
            counter_.add(ordered[done]->count);
            ordered[done]->count = merge_long(pairs_, ordered[done]->ids, ordered[done]->count, scratch_);
        }
        for (size_t i = 0; i < count_; ++i) {
            Piece& piece = *pieces_[i];
            uint32_t* const to = piece.ids + piece.count;
            if (all_[i].ids != to) copy_in_windows(all_[i].ids, all_[i].count, to);
            piece.count += all_[i].count;
        }
        count_ = 0;
    }

  private:
    static constexpr size_t kMost = 512;
    static constexpr size_t kWorthLanes = 4;  // pieces that take as long one by one
    static size_t class_of(const Piece& one) { return std::min(one.count, kMostLaneParts + 1); }

    const PairTable& pairs_;
    MergeScratch& scratch_;
    InterruptCounter counter_;
    size_t count_ = 0;
    Piece all_[kMost];
    Piece* pieces_[kMost];
};

}  // namespace

size_t parts_of(const PairTable& pairs, std::string_view piece, uint32_t* out) {
    if (!is_ascii(piece)) {
        size_t count = character_tokens(pairs, piece, out, false);
        if (count > kMostLaneParts) count = character_tokens(pairs, piece, out, true);
        if (count > 0) return count;
    }
    if (!byte_tokens(pairs, piece, out)) throw_no_token(pairs, piece);
    return piece.size();
}

void merge_parts(const PairTable& pairs, std::span<Piece> pieces, MergeScratch& scratch) {
    Stretches stretches(pairs, scratch);
    for (Piece& piece : pieces) {
        const size_t parts = std::exchange(piece.count, 0);
        for (size_t from = 0, to; from < parts; from = to) {
            to = end_of_stretch(piece.ids, from, parts);
            stretches.add(piece.ids + from, to - from, piece);
        }
    }
    stretches.merge();
}

}  // namespace llmfast
