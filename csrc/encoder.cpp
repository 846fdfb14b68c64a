#include "encoder.h"

namespace llmfast {
namespace {
constexpr size_t kPiecesAtOnce = 1024;
}

size_t Encoder::encode_piece(std::string_view piece, const char* text_end, std::vector<uint32_t>& ids,
                             MergeScratch& scratch, bool look_up) const {
    const uint32_t whole = vocabulary_.find(piece.data(), piece.size(), text_end - piece.data() >= 16);
    if (look_up && whole != kNoToken) {
        ids.push_back(whole);
        return 1;
    }
    const size_t before = ids.size();
    ids.resize(before + piece.size());
    const size_t count = merge(vocabulary_, piece.data(), piece.size(), text_end, ids.data() + before, scratch);
    ids.resize(before + count);
    return count;
}

size_t Encoder::encode_piece(std::string_view piece, std::vector<uint32_t>& ids, bool look_up) const {
    if (piece.empty()) return 0;
    MergeScratch scratch;
    return encode_piece(piece, piece.data() + piece.size(), ids, scratch, look_up);
}

size_t Encoder::encode(std::string_view text, std::vector<uint32_t>& ids) const {
    MergeScratch scratch;
    uint32_t ends[kPiecesAtOnce];
    const char* at = text.data();
    const char* const text_end = at + text.size();
    size_t last = 0;
    while (at < text_end) {
        const size_t pieces = split(pattern_, at, static_cast<size_t>(text_end - at), ends, kPiecesAtOnce);
        uint32_t start = 0;
        for (size_t i = 0; i < pieces; ++i) {
            last = encode_piece({at + start, ends[i] - start}, text_end, ids, scratch, true);
            start = ends[i];
        }
        at += start;
    }
    return last;
}

}  // namespace llmfast
