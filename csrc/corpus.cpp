#include "corpus.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "parallel.h"

namespace llmfast {
namespace {

constexpr std::size_t kBlock = 1 << 20;  // bytes handed to a thread at a time

}  // namespace

// Where the threads fetch their work. `next` is called by one thread at a time.
class Corpus::Source {
public:
    struct Block {
        std::string buffer;
        std::vector<std::string_view> texts;  // in `buffer` or in memory that outlives the source
    };
    virtual ~Source() = default;
    virtual bool next(Block& block) = 0;  // false at the end
};

class Corpus::DocumentSource : public Source {
public:
    DocumentSource(const Corpus& corpus, const std::vector<std::string_view>& documents)
        : corpus_(corpus), documents_(documents) {}

    bool next(Block& block) override {
        block.texts.clear();
        for (std::size_t bytes = 0; bytes < kBlock && index_ < documents_.size();) {
            const std::string_view rest = documents_[index_].substr(offset_);
            const std::size_t length = first_part(rest);
            block.texts.push_back(rest.substr(0, length));
            bytes += length;
            offset_ += length;
            if (length == rest.size()) {
                ++index_;
                offset_ = 0;
            }
        }
        return !block.texts.empty();
    }

private:
    // Long documents are cut, so that all threads share them.
    std::size_t first_part(std::string_view text) const {
        if (text.size() <= 2 * kBlock) return text.size();
        const std::size_t cut = certain_boundary(corpus_.pattern_, text.data(), text.size(), kBlock);
        return corpus_.inside_separator(text, cut) ? text.size() : cut;
    }

    const Corpus& corpus_;
    const std::vector<std::string_view>& documents_;
    std::size_t index_ = 0, offset_ = 0;
};

class Corpus::FileSource : public Source {
public:
    FileSource(const Corpus& corpus, const std::string& path)
        : corpus_(corpus), path_(path), file_(std::fopen(path.c_str(), "rb"), &std::fclose) {
        if (!file_) fail();
        std::setvbuf(file_.get(), nullptr, _IONBF, 0);
    }

    bool next(Block& block) override {
        std::string& text = block.buffer;
        text.swap(carried_);
        carried_.clear();
        while (true) {
            const std::size_t had = text.size(), wanted = std::max(kBlock, had);
            text.resize(had + wanted);
            const std::size_t got = std::fread(text.data() + had, 1, wanted, file_.get());
            if (got < wanted && std::ferror(file_.get())) fail();
            text.resize(had + got);
            const bool at_end = got < wanted;
            if (const std::size_t cut = at_end ? text.size() : corpus_.find_cut(text)) {
                carried_.assign(text, cut);
                text.resize(cut);
                break;
            }
            if (at_end) break;
        }
        block.texts.assign(1, text);
        return !text.empty();
    }

private:
    [[noreturn]] void fail() const { throw std::runtime_error("cannot read " + path_ + ": " + std::strerror(errno)); }

    const Corpus& corpus_;
    std::string path_;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
    std::string carried_;  // read, but after the last cut
};

Corpus::Corpus(Pattern pattern, std::vector<std::string> separators, unsigned threads)
    : pattern_(pattern), separators_(std::move(separators)), counts_(std::max(1u, threads)) {}

void Corpus::add_documents(const std::vector<std::string_view>& documents) {
    DocumentSource source(*this, documents);
    count(source, nullptr);
}

void Corpus::add_file(const std::string& path, const Progress& progress) {
    FileSource source(*this, path);
    count(source, progress);
}

std::vector<Word> Corpus::words() {
    WordCounts::join(counts_);
    return counts_[0].words();
}

void Corpus::count(Source& source, const Progress& progress) {
    std::mutex mutex;
    std::atomic<std::uint64_t> bytes = bytes_read_;
    std::atomic<bool> failed = false;
    run_parallel(counts_.size(), counts_.size(), [&](std::size_t, std::size_t member) {
        try {
            Source::Block block;
            while (!failed) {
                {
                    const std::lock_guard lock(mutex);
                    if (!source.next(block)) return;
                }
                for (std::string_view text : block.texts) {
                    count_text(text, counts_[member]);
                    bytes += text.size();
                }
                if (member == 0 && progress) progress(bytes);
            }
        } catch (...) {
            failed = true;
            throw;
        }
    });
    bytes_read_ = bytes;
}

void Corpus::count_text(std::string_view text, WordCounts& counts) const {
    constexpr std::size_t kEnds = 1024;
    std::uint32_t ends[kEnds];
    const char* text_end = text.data() + text.size();
    while (!text.empty()) {
        std::size_t separator_length = 0;
        const std::size_t document = find_separator(text, 0, separator_length);
        const char* rest = text.data();
        for (std::size_t left = document; left > 0;) {
            const std::size_t n = split(pattern_, rest, left, ends, kEnds);
            std::uint32_t start = 0;
            for (std::size_t i = 0; i < n; ++i) {
                counts.add({rest + start, ends[i] - start}, text_end - (rest + start) >= 16);
                start = ends[i];
            }
            rest += start;
            left -= start;
        }
        text.remove_prefix(document + separator_length);
    }
}

// The first separator at or after `from`, the longest one there; text.size() and length 0 if there is none.
std::size_t Corpus::find_separator(std::string_view text, std::size_t from, std::size_t& length) const {
    std::size_t first = text.size();
    length = 0;
    for (const std::string& separator : separators_) {
        const std::size_t found = text.substr(0, std::min(text.size(), first + separator.size())).find(separator, from);
        if (found < first || (found == first && separator.size() > length)) {
            first = found;
            length = separator.size();
        }
    }
    return first;
}

// Whether a cut would go through a separator, or through what may be the start of one.
bool Corpus::inside_separator(std::string_view text, std::size_t cut) const {
    for (const std::string& separator : separators_) {
        for (std::size_t start = cut - std::min(cut, separator.size() - 1); start < cut; ++start) {
            const std::string_view part = text.substr(start, separator.size());
            if (part == std::string_view(separator).substr(0, part.size())) return true;
        }
    }
    return false;
}

// A place near the end where text that goes on may be cut; 0 if it has none.
std::size_t Corpus::find_cut(std::string_view text) const {
    for (const std::size_t from : {text.size() - text.size() / 8, text.size() / 2, std::size_t{1}}) {
        const std::size_t cut = certain_boundary(pattern_, text.data(), text.size(), from);
        if (cut < text.size() && !inside_separator(text, cut)) return cut;
    }
    std::size_t cut = 0, length = 0, end = 0;
    for (std::size_t at = find_separator(text, 0, length); length > 0; at = find_separator(text, end, length)) {
        end = at + length;
        if (!inside_separator(text, end)) cut = end;
    }
    return cut;
}

}  // namespace llmfast
