// Finds special tokens in text: the leftmost, and the longest of those that start at the same place.
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

// The special tokens in the order of their bytes. Those that are prefixes of a text are found by one binary search and
// along a chain from longer to shorter prefixes, so that the time for a place in a text depends on the length of the
// special tokens and hardly on their number; memory beside the tokens themselves is 8 bytes per token.
class Specials {
  public:
    // Which of them are recognized, in the order of all(); empty for none.
    using Enabled = std::vector<bool>;

    struct Match {
        size_t begin;
        const Special* special;  // nullptr where there is none
    };

    // Throws std::invalid_argument for the empty string. Of two equal ones the first is kept.
    explicit Specials(std::vector<Special> specials);

    const std::vector<Special>& all() const { return specials_; }

    // The index in all() of the special token with these bytes; all().size() where there is none.
    size_t index(std::string_view bytes) const;

    const Enabled& every() const { return every_; }
    static void subtract(Enabled& enabled, const Enabled& others);

    // The first special token at or after `from` that is enabled.
    Match find(std::string_view text, size_t from, const Enabled& enabled) const;

    // The first position at or after `from` from which the rest of the text is a proper prefix of a special token,
    // which more text might complete; the length of the text if there is none.
    size_t find_unfinished(std::string_view text, size_t from) const;

    // The length of the longest special token.
    size_t longest() const { return longest_; }

  private:
    static constexpr uint32_t kNone = UINT32_MAX;

    size_t first_candidate(std::string_view text, size_t from) const;
    const Special* longest_prefix(std::string_view text, const Enabled& enabled) const;

    std::vector<Special> specials_;
    std::vector<uint32_t> shorter_;  // the longest special token that is a proper prefix of this one, or kNone
    Enabled every_;
    std::string prefix_;  // that all of them share
    bool first_bytes_[256] = {};
    size_t longest_ = 0;
};

}  // namespace llmfast
