#include "vocabulary/vocabulary.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <stdexcept>

#include "system/hash.h"
#include "system/interrupt.h"
#include "system/prefetch.h"

namespace llmfast {

std::string printable(std::string_view bytes) {
    static constexpr char kDigits[] = "0123456789abcdef";
    constexpr size_t kMost = 80;
    std::string text = "b'";
    for (const unsigned char byte : bytes.substr(0, kMost)) {
        if (byte >= 0x20 && byte < 0x7F && byte != '\'' && byte != '\\') {
            text += static_cast<char>(byte);
        } else {
            text += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
        }
    }
    if (bytes.size() > kMost) return text + "'... (" + std::to_string(bytes.size()) + " bytes)";
    return text + "'";
}

Vocabulary::Vocabulary(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids) {
    if (tokens.empty()) throw std::invalid_argument("a vocabulary needs tokens; it got none");
    if (tokens.size() > size_t{kLargestId} + 1) throw std::invalid_argument("a vocabulary has at most 2^24 tokens");
    InterruptCounter counter;
    size_t total = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
        counter.add(1);
        if (tokens[i].empty()) throw std::invalid_argument("token " + std::to_string(ids[i]) + " has no bytes");
        if (ids[i] > kLargestId) {
            throw std::invalid_argument("id " + std::to_string(ids[i]) + " of " + printable(tokens[i]) +
                                        " is above the largest, " + std::to_string(kLargestId));
        }
        total += tokens[i].size();
        longest_ = std::max(longest_, tokens[i].size());
    }
    if (total > UINT32_MAX) throw std::invalid_argument("the tokens together have 4 GiB or more");
    std::vector<uint32_t> order(tokens.size());
    std::iota(order.begin(), order.end(), 0);
    if (!std::is_sorted(ids.begin(), ids.end())) {
        sort_with_checks(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return ids[a] < ids[b]; });
    }
    bytes_.reserve(total);
    ids_.reserve(tokens.size());
    spans_.reserve(tokens.size());
    slots_.assign(std::bit_ceil(tokens.size() * 2), kNoToken);
    constexpr size_t kAhead = 8;
    for (size_t i = 0; i < order.size(); ++i) {
        counter.add(1 + tokens[order[i]].size() / 64);
        if (i + kAhead < order.size()) {
            prefetch_line(&slots_[hash_bytes(tokens[order[i + kAhead]]) & (slots_.size() - 1)]);
        }
        append(tokens[order[i]], ids[order[i]]);
    }
}

// Adds a token whose id is not below those of the tokens before it.
void Vocabulary::append(std::string_view token, uint32_t id) {
    if (!ids_.empty() && ids_.back() == id) {
        throw std::invalid_argument("two tokens have the id " + std::to_string(id) + ": " +
                                    printable(this->token(ids_.size() - 1)) + " and " + printable(token));
    }
    if (token.size() > kLongestShortKey) long_tokens_.set(long_hash(token));
    const size_t mask = slots_.size() - 1;
    size_t at = hash_bytes(token) & mask;
    for (; slots_[at] != kNoToken; at = (at + 1) & mask) {
        if (this->token(slots_[at]) == token)
            throw std::invalid_argument("token " + printable(token) + " stands twice");
    }
    slots_[at] = static_cast<uint32_t>(ids_.size());
    ids_.push_back(id);
    spans_.push_back({static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(token.size())});
    bytes_ += token;
}

// The hash of a token of 16 bytes and more, from its first and last 8 bytes.
size_t Vocabulary::long_hash(std::string_view token) {
    uint64_t first, last;
    std::memcpy(&first, token.data(), 8);
    std::memcpy(&last, token.data() + token.size() - 8, 8);
    return (hash_words(first, last) + token.size()) % (1 << 16);
}

uint32_t Vocabulary::find(std::string_view token) const {
    if (token.empty() || token.size() > longest_) return kNoToken;
    if (token.size() > kLongestShortKey && !long_tokens_[long_hash(token)]) return kNoToken;
    const size_t mask = slots_.size() - 1;
    for (size_t at = hash_bytes(token) & mask;; at = (at + 1) & mask) {  // half of the slots are empty
        if (slots_[at] == kNoToken) return kNoToken;
        if (this->token(slots_[at]) == token) return ids_[slots_[at]];
    }
}

}  // namespace llmfast
