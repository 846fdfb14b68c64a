#include "train/corpus.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "system/interrupt.h"
#include "system/parallel.h"
#include "system/termination.h"

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
        // Searching for a cut may take all of the text: it doubles between two searches, so that they take linear time.
        for (bool at_end = false; !at_end;) {
            const std::size_t wanted = text.size() + std::max(kBlock, text.size());
            while (text.size() < wanted && !at_end) at_end = !read_block(text);
            if (const std::size_t cut = at_end ? text.size() : corpus_.find_cut(text)) {
                carried_.assign(text, cut);
                text.resize(cut);
                break;
            }
        }
        block.texts.assign(1, text);
        return !text.empty();
    }

private:
    // Appends the next kBlock bytes; false at the end of the file.
    bool read_block(std::string& text) {
        check_interrupt();
        const std::size_t had = text.size();
        text.resize(had + kBlock);
        const std::size_t got = std::fread(text.data() + had, 1, kBlock, file_.get());
        if (got < kBlock && std::ferror(file_.get())) fail();
        text.resize(had + got);
        return got == kBlock;
    }

    [[noreturn]] void fail() const { throw std::runtime_error("cannot read " + path_ + ": " + std::strerror(errno)); }

    const Corpus& corpus_;
    std::string path_;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
    std::string carried_;  // read, but after the last cut
};

namespace {

Specials specials_of(std::vector<std::string> texts) {
    std::vector<Special> specials;
    for (std::string& text : texts) specials.push_back({std::move(text), 0});
    return Specials(std::move(specials));
}

}  // namespace

Corpus::Corpus(Pattern pattern, std::vector<std::string> separators, unsigned threads)
    : pattern_(pattern), separators_(specials_of(std::move(separators))), counts_(std::max(1u, threads)) {}

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
    Decreasing texts_left(text.size() + 1);
    while (!text.empty()) {
        texts_left.require(text.size());
        const Specials::Match separator = separators_.find(text, 0, separators_.every());
        const char* rest = text.data();
        Decreasing document_left(separator.begin + 1);
        for (std::size_t left = separator.begin; left > 0;) {
            document_left.require(left);
            check_interrupt();
            const std::size_t n = split(pattern_, rest, left, ends, kEnds);
            std::uint32_t start = 0;
            for (std::size_t i = 0; i < n; ++i) {
                counts.add({rest + start, ends[i] - start}, text_end - (rest + start) >= 16);
                start = ends[i];
            }
            rest += start;
            left -= start;
        }
        text.remove_prefix(separator.begin + (separator.special ? separator.special->bytes.size() : 0));
    }
}

// Whether a cut would go through a separator, or through what may be the start of one.
bool Corpus::inside_separator(std::string_view text, std::size_t cut) const {
    for (const Special& separator : separators_.all()) {
        const std::string_view bytes = separator.bytes;
        for (std::size_t start = cut - std::min(cut, bytes.size() - 1); start < cut; ++start) {
            const std::string_view part = text.substr(start, bytes.size());
            if (part == bytes.substr(0, part.size())) return true;
        }
    }
    return false;
}

// A place near the end where text that continues may be cut; 0 if it has none.
std::size_t Corpus::find_cut(std::string_view text) const {
    for (const std::size_t from : {text.size() - text.size() / 8, text.size() / 2, std::size_t{1}}) {
        const std::size_t cut = certain_boundary(pattern_, text.data(), text.size(), from);
        if (cut < text.size() && !inside_separator(text, cut)) return cut;
    }
    std::vector<std::size_t> ends;
    for (std::size_t from = 0;;) {  // every separator makes `from` larger: none is empty
        const Specials::Match found = separators_.find(text, from, separators_.every());
        if (!found.special) break;
        from = found.begin + found.special->bytes.size();
        ends.push_back(from);
    }
    while (!ends.empty() && inside_separator(text, ends.back())) ends.pop_back();
    return ends.empty() ? 0 : ends.back();
}

}  // namespace llmfast
