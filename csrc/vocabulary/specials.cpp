#include "vocabulary/specials.h"

#include <algorithm>
#include <stdexcept>

#include "system/interrupt.h"

namespace llmfast {
namespace {

constexpr size_t kWindow = 1 << 20;  // bytes to search between two checks for an interrupt

size_t shared_length(std::string_view a, std::string_view b) {
    return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

}  // namespace

Specials::Specials(std::vector<Special> specials) : specials_(std::move(specials)) {
    const auto by_bytes = [](const Special& a, const Special& b) { return a.bytes < b.bytes; };
    const auto equal = [](const Special& a, const Special& b) { return a.bytes == b.bytes; };
    std::stable_sort(specials_.begin(), specials_.end(), by_bytes);
    specials_.erase(std::unique(specials_.begin(), specials_.end(), equal), specials_.end());
    every_.assign(specials_.size(), true);
    if (specials_.empty()) return;
    if (specials_[0].bytes.empty()) {
        throw std::invalid_argument("the special token " + std::to_string(specials_[0].id) + " is the empty string");
    }
    // In sorted order, tokens with a common prefix are adjacent. So the first and the last token have the common prefix
    // of all, and the longest proper prefix of a token is the token before it or a prefix of that one.
    prefix_ = specials_[0].bytes.substr(0, shared_length(specials_[0].bytes, specials_.back().bytes));
    shorter_.reserve(specials_.size());
    for (size_t i = 0; i < specials_.size(); ++i) {
        const std::string_view bytes = specials_[i].bytes;
        longest_ = std::max(longest_, bytes.size());
        first_bytes_[static_cast<uint8_t>(bytes[0])] = true;
        uint32_t shorter = i == 0 ? kNone : static_cast<uint32_t>(i - 1);
        while (shorter != kNone && !bytes.starts_with(specials_[shorter].bytes)) shorter = shorter_[shorter];
        shorter_.push_back(shorter);
    }
}

size_t Specials::index(std::string_view bytes) const {
    const auto found = std::lower_bound(specials_.begin(), specials_.end(), bytes,
                                        [](const Special& a, std::string_view b) { return a.bytes < b; });
    return found != specials_.end() && found->bytes == bytes ? static_cast<size_t>(found - specials_.begin())
                                                             : specials_.size();
}

void Specials::subtract(Enabled& enabled, const Enabled& others) {
    for (size_t i = 0; i < others.size(); ++i) enabled[i] = enabled[i] && !others[i];
}

// The first position at or after `from` where the common prefix of all special tokens is, or, if they have none, the
// first byte of one of them; the length of the text if there is none.
size_t Specials::first_candidate(std::string_view text, size_t from) const {
    while (from < text.size()) {
        check_interrupt();
        const size_t end = std::min(text.size(), from + kWindow);
        if (!prefix_.empty()) {
            const size_t last = std::min(text.size(), end + prefix_.size() - 1);  // of one that starts before `end`
            const size_t found = text.substr(0, last).find(prefix_, from);
            if (found != text.npos) return found;
            from = end;
        } else {
            while (from < end && !first_bytes_[static_cast<uint8_t>(text[from])]) ++from;
            if (from < end) return from;
        }
    }
    return text.size();
}

// The longest enabled special token that `text` starts with, or nullptr.
const Special* Specials::longest_prefix(std::string_view text, const Enabled& enabled) const {
    // The last special token that is not greater than `text` starts with every special token that `text` starts with.
    const auto above = std::upper_bound(specials_.begin(), specials_.end(), text,
                                        [](std::string_view a, const Special& b) { return a < b.bytes; });
    if (above == specials_.begin()) return nullptr;
    uint32_t which = static_cast<uint32_t>(above - specials_.begin() - 1);
    const size_t shared = shared_length(text, specials_[which].bytes);
    for (; which != kNone; which = shorter_[which]) {
        if (enabled[which] && specials_[which].bytes.size() <= shared) return &specials_[which];
    }
    return nullptr;
}

size_t Specials::find_unfinished(std::string_view text, size_t from) const {
    InterruptCounter counter;
    // The rest of the text is shorter than the token that it is a prefix of.
    size_t at = text.size() < longest_ ? from : std::max(from, text.size() - longest_ + 1);
    for (; at < text.size(); ++at) {
        counter.add(1);
        if (!first_bytes_[static_cast<uint8_t>(text[at])]) continue;
        const std::string_view rest = text.substr(at);
        const auto above = std::upper_bound(specials_.begin(), specials_.end(), rest,
                                            [](std::string_view a, const Special& b) { return a < b.bytes; });
        if (above != specials_.end() && above->bytes.starts_with(rest)) return at;
    }
    return text.size();
}

Specials::Match Specials::find(std::string_view text, size_t from, const Enabled& enabled) const {
    if (enabled.empty()) return {text.size(), nullptr};
    for (size_t at = first_candidate(text, from); at < text.size(); at = first_candidate(text, at + 1)) {
        if (const Special* const special = longest_prefix(text.substr(at), enabled)) return {at, special};
    }
    return {text.size(), nullptr};
}

}  // namespace llmfast
