#include "train/corpus.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "system/buffer.h"
#include "system/interrupt.h"
#include "system/parallel.h"
#include "system/termination.h"

namespace llmfast {
namespace {

constexpr size_t kBlock = 1 << 20;  // bytes handed to a thread at a time

// Locks a mutex that another thread may hold for long, while it reads.
void lock_with_checks(std::mutex& mutex) {
    constexpr std::chrono::microseconds kPause{100};
    while (!mutex.try_lock()) {
        check_interrupt();
        std::this_thread::sleep_for(kPause);
    }
}

}  // namespace

// Where the threads fetch their work. `next` is called by one thread at a time.
class Corpus::Source {
  public:
    struct Block {
        ByteBuffer buffer;
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
        for (size_t bytes = 0; bytes < kBlock && index_ < documents_.size();) {
            const std::string_view rest = documents_[index_].substr(offset_);
            const size_t length = first_part(rest);
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
    size_t first_part(std::string_view text) const {
        if (text.size() <= 2 * kBlock) return text.size();
        const size_t cut = certain_boundary(corpus_.pattern_, text.data(), text.size(), kBlock);
        return corpus_.may_cut(text, cut) ? cut : text.size();
    }

    const Corpus& corpus_;
    const std::vector<std::string_view>& documents_;
    size_t index_ = 0, offset_ = 0;
};

class Corpus::FileSource : public Source {
  public:
    FileSource(const Corpus& corpus, const std::string& path)
        : corpus_(corpus), path_(path), file_(std::fopen(path.c_str(), "rb"), &std::fclose) {
        if (!file_) fail();
        std::setvbuf(file_.get(), nullptr, _IONBF, 0);
    }

    bool next(Block& block) override {
        ByteBuffer& text = block.buffer;
        std::swap(text, carried_);
        carried_.clear();
        // Searching for a cut may take all of the text: it doubles between two searches, so that they take linear time.
        for (bool at_end = false; !at_end;) {
            const size_t wanted = text.size() + std::max(kBlock, text.size());
            while (text.size() < wanted && !at_end) at_end = !read_block(text);
            const std::string_view all(text.data(), text.size());
            if (const size_t cut = at_end ? all.size() : corpus_.find_cut(all)) {
                copy_in_windows(all.data() + cut, all.size() - cut, carried_.prepare(all.size() - cut));
                carried_.commit(all.size() - cut);
                text.truncate(cut);
                break;
            }
        }
        block.texts.assign(1, {text.data(), text.size()});
        return !text.empty();
    }

  private:
    // Appends the next kBlock bytes; false at the end of the file.
    bool read_block(ByteBuffer& text) {
        for (size_t left = kBlock; left > 0;) {
            check_interrupt();
            errno = 0;
            const size_t got = std::fread(text.prepare(left), 1, left, file_.get());
            text.commit(got);
            left -= got;
            if (std::feof(file_.get())) return false;
            if (got == 0 && errno != EINTR) fail();  // a signal may interrupt reading, from a pipe for example
            std::clearerr(file_.get());
        }
        return true;
    }

    [[noreturn]] void fail() const { throw std::runtime_error("cannot read " + path_ + ": " + std::strerror(errno)); }

    const Corpus& corpus_;
    std::string path_;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
    ByteBuffer carried_;  // read, but after the last cut
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
    std::atomic<uint64_t> bytes = bytes_read_;
    std::atomic<bool> failed = false;
    run_parallel(counts_.size(), counts_.size(), [&](size_t, size_t member) {
        try {
            Source::Block block;
            while (!failed) {
                {
                    lock_with_checks(mutex);
                    const std::lock_guard lock(mutex, std::adopt_lock);
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
    constexpr size_t kEnds = 1024;
    uint32_t ends[kEnds];
    InterruptCounter counter;
    const char* text_end = text.data() + text.size();
    Decreasing texts_left(text.size() + 1);
    while (!text.empty()) {
        texts_left.require(text.size());
        const Specials::Match separator = separators_.find(text, 0, separators_.every());
        const char* rest = text.data();
        Decreasing document_left(separator.begin + 1);
        for (size_t left = separator.begin; left > 0;) {
            document_left.require(left);
            check_interrupt();
            const size_t n = split(pattern_, rest, left, ends, kEnds);
            uint32_t start = 0;
            for (size_t i = 0; i < n; ++i) {
                counter.add(1 + (ends[i] - start) / 16);
                counts.add({rest + start, ends[i] - start}, text_end - (rest + start) >= 16);
                start = ends[i];
            }
            rest += start;
            left -= start;
        }
        text.remove_prefix(separator.begin + (separator.special ? separator.special->bytes.size() : 0));
    }
}

// Whether a cut goes neither through a separator nor through what may be the start of one.
bool Corpus::may_cut(std::string_view text, size_t cut) const {
    if (separators_.all().empty()) return true;
    if (separators_.find_unfinished(text, 0) < cut) return false;
    const std::string_view near = text.substr(0, cut + separators_.longest());
    for (size_t from = cut - std::min(cut, separators_.longest() - 1);;) {  // every separator makes `from` larger
        const Specials::Match found = separators_.find(near, from, separators_.every());
        if (!found.special || found.begin >= cut) return true;
        if (found.begin + found.special->bytes.size() > cut) return false;
        from = found.begin + 1;
    }
}

// A place near the end where text that continues may be cut; 0 if it has none.
size_t Corpus::find_cut(std::string_view text) const {
    for (const size_t from : {text.size() - text.size() / 8, text.size() / 2, size_t{1}}) {
        const size_t cut = certain_boundary(pattern_, text.data(), text.size(), from);
        if (cut < text.size() && may_cut(text, cut)) return cut;
    }
    // The text starts behind a cut, so its separators are found from there on, one behind another. Those are certain
    // that begin before the first one that the rest of the text may continue. The last of them is the last place to
    // cut.
    const size_t unfinished = separators_.find_unfinished(text, 0);
    size_t end = 0;
    while (true) {  // every separator moves `end` forward: none is empty
        const Specials::Match found = separators_.find(text, end, separators_.every());
        if (!found.special || found.begin >= unfinished) return end;
        end = found.begin + found.special->bytes.size();
    }
}

}  // namespace llmfast
