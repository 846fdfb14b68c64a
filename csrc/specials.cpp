#include "specials.h"

#include <algorithm>
#include <stdexcept>

namespace llmfast {

Specials::Specials(std::vector<Special> specials)
    : specials_(std::move(specials)), every_(specials_.size(), true) {
    std::stable_sort(specials_.begin(), specials_.end(),
                     [](const Special& a, const Special& b) { return a.bytes.size() > b.bytes.size(); });
    if (specials_.empty()) return;
    prefix_ = specials_[0].bytes;
    for (const Special& special : specials_) {
        if (special.bytes.empty()) {
            throw std::invalid_argument("the special token " + std::to_string(special.id) + " is the empty string");
        }
        const auto differ = std::mismatch(prefix_.begin(), prefix_.end(), special.bytes.begin(), special.bytes.end());
        prefix_.erase(differ.first, prefix_.end());
        first_bytes_[static_cast<uint8_t>(special.bytes[0])] = true;
    }
}

void Specials::enable(Enabled& enabled, size_t which) {
    if (enabled.size() <= which) enabled.resize(which + 1);
    enabled[which] = true;
}

void Specials::subtract(Enabled& enabled, const Enabled& others) {
    for (size_t i = 0; i < others.size(); ++i) enabled[i] = enabled[i] && !others[i];
}

Specials::Match Specials::find(std::string_view text, size_t from, const Enabled& enabled) const {
    if (enabled.empty()) return {text.size(), nullptr};
    while (true) {
        if (!prefix_.empty()) {
            from = text.find(prefix_, from);
            if (from == text.npos) return {text.size(), nullptr};
        } else {
            while (from < text.size() && !first_bytes_[static_cast<uint8_t>(text[from])]) ++from;
            if (from >= text.size()) return {text.size(), nullptr};
        }
        for (size_t i = 0; i < enabled.size(); ++i) {
            if (enabled[i] && text.compare(from, specials_[i].bytes.size(), specials_[i].bytes) == 0) {
                return {from, &specials_[i]};
            }
        }
        ++from;
    }
}

}  // namespace llmfast
