#include "derive_merges.h"

#include <algorithm>

#include "vocabulary.h"

namespace llmfast {
namespace {

// Merges the bytes of `token` by all ranks below `limit`: lowest rank first, and leftmost among equals.
Parts merge_below(const Vocabulary& vocabulary, std::string_view token, std::uint32_t limit) {
    std::vector<std::size_t> starts(token.size() + 1);
    for (std::size_t i = 0; i < starts.size(); ++i) starts[i] = i;

    const auto joined_rank = [&](std::size_t i) {  // of parts i and i + 1; kNoToken is above any limit
        return i + 2 < starts.size() ? vocabulary.find(token.substr(starts[i], starts[i + 2] - starts[i])) : kNoToken;
    };
    std::vector<std::uint32_t> joined(token.size());
    for (std::size_t i = 0; i < joined.size(); ++i) joined[i] = joined_rank(i);

    while (true) {
        const auto lowest = std::min_element(joined.begin(), joined.end());
        if (*lowest >= limit) break;
        const std::size_t i = lowest - joined.begin();
        starts.erase(starts.begin() + i + 1);
        joined.erase(lowest);
        joined[i] = joined_rank(i);
        if (i > 0) joined[i - 1] = joined_rank(i - 1);
    }
    Parts parts;
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
        parts.push_back(vocabulary.find(token.substr(starts[i], starts[i + 1] - starts[i])));
    }
    return parts;
}

}  // namespace

std::vector<Parts> derive_merges(const std::vector<std::string_view>& tokens, const std::vector<std::uint32_t>& ranks) {
    const Vocabulary vocabulary(tokens, ranks);
    std::vector<Parts> parts;
    parts.reserve(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) parts.push_back(merge_below(vocabulary, tokens[i], ranks[i]));
    return parts;
}

}  // namespace llmfast
