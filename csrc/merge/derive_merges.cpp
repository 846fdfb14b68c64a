#include "merge/derive_merges.h"

#include <algorithm>

#include "merge/merge.h"
#include "system/interrupt.h"
#include "vocabulary/vocabulary.h"

namespace llmfast {
namespace {

// The parts of `token` when all merges below `limit` are done. A byte that is no token is a part by itself, kNoToken.
Parts parts_below(const PairTable& pairs, std::string_view token, uint32_t limit, MergeScratch& scratch) {
    Parts parts(token.size());
    byte_tokens(pairs, token, parts.data());
    size_t kept = 0;
    for (size_t from = 0, to; from < token.size(); from = to) {
        for (to = from; to < token.size() && parts[to] != kNoToken;) ++to;
        const size_t count = merge_below(pairs, parts.data() + from, to - from, limit, scratch);
        std::copy_n(parts.begin() + from, count, parts.begin() + kept);
        kept += count;
        for (; to < token.size() && parts[to] == kNoToken; ++to) parts[kept++] = kNoToken;
    }
    parts.resize(kept);
    return parts;
}

}  // namespace

std::vector<Parts> derive_merges(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ranks) {
    const PairTable pairs{Vocabulary(tokens, ranks)};
    MergeScratch scratch;
    std::vector<Parts> parts;
    parts.reserve(tokens.size());
    InterruptCounter counter;
    for (size_t i = 0; i < tokens.size(); ++i) {
        counter.add(8 + tokens[i].size());
        parts.push_back(parts_below(pairs, tokens[i], ranks[i], scratch));
    }
    return parts;
}

}  // namespace llmfast
