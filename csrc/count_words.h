// Counts the distinct pretokens ("words") of a text.

#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "key.h"
#include "prefetch.h"
#include "train.h"

namespace llmfast {

// A hash table from bytes to a 64-bit count. Words of up to 15 bytes, nearly all there are, are packed into two
// machine words with their length; longer ones live in a table of their own. A batch of short words is held back
// for a moment, so that the memory its slots lie in has arrived when they are counted.
class WordCounts {
public:
    WordCounts();

    // `readable`: 16 bytes may be read at word.data().
    void add(std::string_view word, bool readable) {
        if (word.size() > kLongestShortKey) {
            add_long(word, 1);
        } else if (!word.empty()) {
            hold_back(short_key(word.data(), word.size(), readable));
        }
    }

    void add(std::string_view word, std::uint64_t count);

    // Counts what was held back; call it before reading.
    void flush();

    // Adds the counts of `other`, which must be flushed, and empties it.
    void absorb(WordCounts& other);

    // The words in an unspecified order. Their bytes belong to this object, until it changes.
    std::vector<Word> words() const;

private:
    static constexpr std::size_t kBatch = 16;

    struct ShortSlot {
        Key key;
        std::uint64_t count;  // 0: empty
    };
    struct LongSlot {
        std::uint64_t hash;
        std::size_t offset;  // in long_bytes_
        std::size_t length;
        std::uint64_t count;  // 0: empty
    };

    void hold_back(Key key) {
        const std::uint64_t h = hash_key(key) >> shift_;
        prefetch_line(&short_[h]);
        held_[n_held_++] = {key, h};
        if (n_held_ == kBatch) flush();
    }
    void add_short(Key key, std::size_t slot, std::uint64_t count);
    void add_long(std::string_view word, std::uint64_t count);
    void grow_short();
    void grow_long();

    struct Held {
        Key key;
        std::size_t slot;
    };
    std::array<Held, kBatch> held_;
    std::size_t n_held_ = 0;

    std::vector<ShortSlot> short_;
    std::size_t n_short_ = 0;
    int shift_;  // a slot is the top bits of a hash

    std::vector<LongSlot> long_;
    std::size_t n_long_ = 0;
    std::string long_bytes_;
};

}  // namespace llmfast
