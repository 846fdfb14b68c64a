// Special tokens: found in text by their bytes, leftmost first and the longest of those that start together.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llmfast {

struct Special {
    std::string bytes;
    uint32_t id;
};

class Specials {
  public:
    struct Match {
        size_t begin;
        const Special* special;  // nullptr where there is none
    };

    explicit Specials(std::vector<Special> specials);

    const std::vector<Special>& all() const { return specials_; }

    // The first special token at or after `from`; `enabled[i]` says whether all()[i] counts.
    Match find(std::string_view text, size_t from, const std::vector<bool>& enabled) const;

  private:
    std::vector<Special> specials_;  // longest first
    std::string prefix_;             // that all of them share
    bool first_bytes_[256] = {};
};

}  // namespace llmfast
