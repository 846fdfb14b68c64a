// Every phase of long work checks for interrupts: the processor time between two checks is bounded, however large the
// arrays are, and work that is stopped at any check leaves everything that outlives it usable.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "encode/decoder.h"
#include "encode/documents.h"
#include "fuzz/check.h"
#include "merge/derive_merges.h"
#include "system/interrupt.h"
#include "train/corpus.h"
#include "train/train.h"

using namespace llmfast;

namespace {

// Ctrl-C is to act within 0.2 s, of which polling takes 0.05.
constexpr double kMostSeconds = 0.15;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // which makes everything slow
#else
constexpr bool kSanitized = false;
#endif
constexpr size_t kBytes = 8'000'000;

// Of this thread's processor time, which a busy machine does not make longer.
double processor_seconds() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The longest time from one check to the next, with the work's beginning and end.
double longest_gap(const std::function<void()>& work) {
    double last = processor_seconds(), longest = 0;
    const auto look = [&] {
        const double now = processor_seconds();
        longest = std::max(longest, now - last);
        last = now;
        return false;
    };
    {
        const Interrupt interrupt(look, std::chrono::milliseconds(0));
        work();
    }
    look();
    return longest;
}

// Repeats work that seems to go too long without a check: a machine that does something else only makes gaps longer.
void test_gaps(const char* name, const std::function<void()>& work) {
    double shortest = longest_gap(work);
    for (int i = 0; i < 4 && shortest >= kMostSeconds; ++i) shortest = std::min(shortest, longest_gap(work));
    if (shortest < kMostSeconds) return;
    std::fprintf(stderr, "%s: %.3f s without a check\n", name, shortest);
    std::abort();
}

// Stops the work at the first check, the second, the fourth, and so on, and then lets it end.
void test_stops(const std::function<void()>& work) {
    for (size_t most = 1;; most *= 2) {
        size_t checks = 0;
        const Interrupt interrupt([&] { return ++checks == most; }, std::chrono::milliseconds(0));
        try {
            return work();
        } catch (const Stopped&) {
        }
    }
}

std::string repeated(const std::string& part, size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += part;
    return text;
}

std::string random_text(const std::string& alphabet, size_t bytes, unsigned seed = 0) {
    std::mt19937 random(seed);
    std::string text;
    while (text.size() < bytes) text += alphabet[random() % alphabet.size()];
    return text;
}

// Long pieces of all kinds: one run, words, characters of three bytes that merge or do not, and nothing repeated.
std::vector<std::string> long_pieces(size_t bytes) {
    return {repeated("a", bytes), repeated("the ing", bytes), repeated("\xE4\xB8\xAD\xE6\x96\x87", bytes),
            repeated("\xE4\xB8\xAD\xE3\x81\x82\xD0\x9F", bytes), random_text("aabbc de1\n", bytes)};
}

void test_encoding() {
    const Encoder whole(fuzz::small_vocabulary(), Pattern::none), pieces(fuzz::small_vocabulary(), Pattern::gpt2);
    for (const std::string& text : long_pieces(kBytes)) {
        IdBuffer ids;
        test_gaps("encode one piece", [&] { whole.encode(text, ids); });
        test_gaps("encode", [&] { pieces.encode(text, ids); });
        test_gaps("count", [&] { pieces.count(text); });
        const std::vector<std::string_view> documents(2, text);
        std::vector<int64_t> offsets(3);
        test_gaps("encode documents",
                  [&] { encode_documents<uint32_t>(whole, documents, std::nullopt, 2, offsets.data()); });
        const Decoder decoder(whole.vocabulary(), {});
        std::string decoded(text);
        ids.clear();
        whole.encode(text, ids);
        const std::span<const uint32_t> all(ids.data(), ids.size());
        test_gaps("measure", [&] { decoder.measure(all); });
        test_gaps("write", [&] { decoder.write(all, decoded.data(), decoded.size()); });
        LLMFAST_REQUIRE(decoded == text);
    }
    // Many pieces, each of them shorter than what is merged between two checks.
    std::string many;
    for (unsigned i = 0; many.size() < kBytes; ++i) many += random_text("aabbcdehilt", 10'000, i) + " ";
    IdBuffer ids;
    test_gaps("encode medium pieces", [&] { pieces.encode(many, ids); });
}

void test_training() {
    std::array<uint8_t, 256> bytes;
    std::iota(bytes.begin(), bytes.end(), 0);
    for (const std::string& text : long_pieces(kBytes / 2)) {
        for (const Pattern pattern : {Pattern::none, Pattern::gpt2}) {
            Corpus corpus(pattern, {"<|end|>", "a<|end|>"}, 1);
            test_gaps("count words", [&] { corpus.add_documents({text, text}); });
            TrainOptions options;
            options.merges = 20;
            options.byte_order = bytes;
            test_gaps("train", [&] { learn_merges(corpus.words(), options); });
        }
    }
    Corpus corpus(Pattern::none, {}, 1);
    test_gaps("count many words", [&] {
        for (uint64_t i = 0; i < 2'000'000; ++i) {
            if (i % 1024 == 0) check_interrupt();
            corpus.add_word(std::to_string(i * 0x9E3779B97F4A7C15), 1);
        }
    });
    test_gaps("list words", [&] { corpus.words(); });
}

void test_vocabularies() {
    std::vector<std::string> texts;
    for (int byte = 0; byte < 256; ++byte) texts.emplace_back(1, static_cast<char>(byte));
    for (uint32_t i = 0; i < 1'000'000; ++i) texts.push_back(std::to_string(i + 1'000'000));
    texts.push_back(repeated("0", kBytes));
    const std::vector<std::string_view> tokens(texts.begin(), texts.end());
    std::vector<uint32_t> ids(tokens.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint32_t>(ids.size() - 1 - i);
    test_gaps("make an encoder", [&] { Encoder(Vocabulary(tokens, ids), Pattern::gpt2); });
    test_gaps("derive merges", [&] { derive_merges(tokens, ids); });
}

void test_stopping() {
    const Encoder encoder(fuzz::small_vocabulary(), Pattern::gpt2);
    const std::string text = random_text("aabbc de1\n", 300'000) + repeated("the ing", 300'000);
    const std::string piece = repeated("abc\xE4\xB8\xAD", 300'000) + random_text("abc", 300'000);
    IdBuffer ids;
    test_stops([&] {
        ids.clear();
        encoder.encode(text, ids);
        encoder.encode_piece(piece, ids);
    });
    IdBuffer expected;
    const Encoder fresh(fuzz::small_vocabulary(), Pattern::gpt2);
    fresh.encode(text, expected);
    fresh.encode_piece(piece, expected);
    LLMFAST_REQUIRE(
        std::equal(ids.data(), ids.data() + ids.size(), expected.data(), expected.data() + expected.size()));

    Corpus corpus(Pattern::gpt2, {}, 2);
    test_stops([&] { corpus.add_documents({text, piece}); });
    LLMFAST_REQUIRE(corpus.words().size() > 10);
    const std::vector<Word> words = corpus.words();
    TrainOptions options;
    options.merges = 50;
    options.threads = 2;
    options.worth_sharing = 50;
    std::iota(options.byte_order.begin(), options.byte_order.end(), 0);
    const auto pairs_of = [](const std::vector<Merge>& merges) {
        std::vector<std::pair<uint32_t, uint32_t>> pairs;
        for (const Merge& merge : merges) pairs.emplace_back(merge.left, merge.right);
        return pairs;
    };
    std::vector<Merge> merges;
    test_stops([&] { merges = learn_merges(words, options); });
    LLMFAST_REQUIRE(pairs_of(merges) == pairs_of(learn_merges(words, options)));
}

}  // namespace

int main() {
    test_stopping();
    if (!kSanitized) {
        test_encoding();
        test_training();
        test_vocabularies();
    }
    std::puts("ok");
}
