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
    // Which of them count, in the order of all(); empty for none.
    using Enabled = std::vector<bool>;

    struct Match {
        size_t begin;
        const Special* special;  // nullptr where there is none
    };

    // Throws std::invalid_argument for the empty string.
    explicit Specials(std::vector<Special> specials);

    const std::vector<Special>& all() const { return specials_; }
    Enabled none() const { return {}; }
    const Enabled& every() const { return every_; }
    static void enable(Enabled& enabled, size_t which);
    static void subtract(Enabled& enabled, const Enabled& others);

    // The first special token at or after `from` that is enabled.
    Match find(std::string_view text, size_t from, const Enabled& enabled) const;

  private:
    std::vector<Special> specials_;  // longest first
    Enabled every_;
    std::string prefix_;             // that all of them share
    bool first_bytes_[256] = {};
};

}  // namespace llmfast
