#include "vocabulary.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <stdexcept>

namespace llmfast {
namespace {

std::string printable(std::string_view token) {
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string text = "b'";
    for (const unsigned char byte : token) {
        if (byte >= 0x20 && byte < 0x7F && byte != '\'' && byte != '\\') {
            text += static_cast<char>(byte);
        } else {
            text += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
        }
    }
    return text + "'";
}

}  // namespace

Vocabulary::Vocabulary(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids)
    : count_(tokens.size()) {
    if (tokens.empty()) throw std::invalid_argument("a vocabulary needs tokens; it got none");
    size_t long_tokens = 0, total = 0;
    uint32_t largest = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i].empty()) throw std::invalid_argument("token " + std::to_string(ids[i]) + " has no bytes");
        if (ids[i] > kLargestId) {
            throw std::invalid_argument("id " + std::to_string(ids[i]) + " of " + printable(tokens[i]) +
                                        " is above the largest, " + std::to_string(kLargestId));
        }
        long_tokens += tokens[i].size() > kLongestShortKey;
        total += tokens[i].size();
        longest_ = std::max(longest_, tokens[i].size());
        largest = std::max(largest, ids[i]);
    }
    if (total > UINT32_MAX) throw std::invalid_argument("the tokens together have 4 GiB or more");
    bytes_.reserve(total + 16);
    spans_.assign(size_t{largest} + 1, Span{0, 0});
    short_mask_ = std::bit_ceil(tokens.size() * 2) - 1;
    short_slots_.assign(short_mask_ + 1, Slot{{0, 0}, kNoToken});
    long_mask_ = std::bit_ceil(long_tokens * 2 + 1) - 1;
    long_slots_.assign(long_mask_ + 1, kNoToken);
    for (size_t i = 0; i < tokens.size(); ++i) insert(tokens[i], ids[i]);
}

void Vocabulary::insert(std::string_view token, uint32_t id) {
    if (spans_[id].length > 0) {
        throw std::invalid_argument("two tokens have the id " + std::to_string(id) + ": " + printable(bytes(id)) +
                                    " and " + printable(token));
    }
    spans_[id] = {static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(token.size())};
    bytes_ += token;
    if (token.size() <= kLongestShortKey) {
        const Key key = short_key(token.data(), token.size(), false);
        uint64_t at = hash_key(key) & short_mask_;
        for (; short_slots_[at].key.high != 0; at = (at + 1) & short_mask_) {
            if (short_slots_[at].key == key) throw std::invalid_argument("token " + printable(token) + " stands twice");
        }
        short_slots_[at] = {key, id};
    } else {
        uint64_t at = std::hash<std::string_view>{}(token) & long_mask_;
        for (; long_slots_[at] != kNoToken; at = (at + 1) & long_mask_) {
            if (bytes(long_slots_[at]) == token) throw std::invalid_argument("token " + printable(token) + " stands twice");
        }
        long_slots_[at] = id;
    }
}

uint32_t Vocabulary::find_long(std::string_view token) const {
    if (token.size() > longest_) return kNoToken;
    for (uint64_t at = std::hash<std::string_view>{}(token) & long_mask_;; at = (at + 1) & long_mask_) {
        const uint32_t id = long_slots_[at];
        if (id == kNoToken || bytes(id) == token) return id;
    }
}

}  // namespace llmfast
