// Reads a corpus that may be larger than memory and counts its words on several threads.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "pretokenize/pretokenize.h"
#include "train/count_words.h"
#include "vocabulary/specials.h"

namespace llmfast {

// What it adds can be stopped (interrupt.h). Throws std::length_error for a word of more than kLongestPiece bytes.
class Corpus {
  public:
    // `separators`, such as the text of special tokens, end a document and are not counted themselves.
    Corpus(Pattern pattern, std::vector<std::string> separators, unsigned threads);
    Corpus(Corpus&&) = default;
    Corpus(const Corpus&) = delete;

    using Progress = std::function<void(uint64_t bytes_read)>;  // on the calling thread; may throw to stop

    void add_documents(const std::vector<std::string_view>& documents);
    void add_file(const std::string& path, const Progress& progress);  // throws std::runtime_error if unreadable
    void add_word(std::string_view word, uint64_t count) {
        counts_[0].add(word, count);
        bytes_read_ += word.size() * count;
    }

    // The distinct words of all that was added; valid until more is added.
    std::vector<Word> words();
    unsigned threads() const { return static_cast<unsigned>(counts_.size()); }
    uint64_t bytes_read() const { return bytes_read_; }

  private:
    class Source;
    class DocumentSource;
    class FileSource;

    void count(Source& source, const Progress& progress);
    void count_text(std::string_view text, WordCounts& counts) const;
    bool may_cut(std::string_view text, size_t cut) const;
    size_t find_cut(std::string_view text) const;

    Pattern pattern_;
    Specials separators_;
    std::vector<WordCounts> counts_;  // one for each thread
    uint64_t bytes_read_ = 0;
};

}  // namespace llmfast
