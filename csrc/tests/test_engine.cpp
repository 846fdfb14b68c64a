// The C++ core by itself, without Python: every instruction set classifies alike, the fuzzer's corpus replays, random
// text holds what the fuzzer asks, and threads that share an encoder agree. Exits with 0 if all of it holds.
//
//     test_engine CORPUS_FILE...
#include <fstream>
#include <iterator>
#include <random>
#include <thread>

#include "classify.h"
#include "fuzz/check.h"

using namespace llmfast;

namespace {

bool equal(const Masks& a, const Masks& b) {
    return a.letter == b.letter && a.upper == b.upper && a.digit == b.digit && a.space == b.space &&
           a.blank == b.blank && a.newline == b.newline && a.apostrophe == b.apostrophe && a.slash == b.slash &&
           a.high == b.high;
}

Classifier plain_classifier() {
    const NamedClassifier* all = classifiers();
    while (all[1].name) ++all;
    return all->classify;
}

void test_classifiers(std::mt19937& random) {
    for (int round = 0; round < 2000; ++round) {
        uint8_t block[64];
        for (uint8_t& byte : block) byte = static_cast<uint8_t>(random());
        Masks expected;
        plain_classifier()(block, expected);
        for (const NamedClassifier* one = classifiers(); one->name; ++one) {
            Masks masks;
            one->classify(block, masks);
            LLMFAST_REQUIRE(equal(masks, expected));
        }
    }
}

std::string random_text(std::mt19937& random, size_t pieces) {
    static const char* const kPieces[] = {"a", "Z", "s", "the", " ", "  ", "\n", "\r\n", "\t", "'", "'s", "'LL", "1",
                                          "12345", "/", ".", "...", "\xC3\xA9", "\xC5\xBF", "\xCC\x81", "\xE4\xB8\xAD",
                                          "\xE3\x80\x80", "\xC2\xA0", "\xF0\x9F\x98\x80", "\xFF", "\xE4", "HTTPServer",
                                          "\xD0\x9F", "\xD1\x80", "\xD9\xA3", "\xC7\x85", "\xE0\xA4\xB9", "\xE0\xA5\x8D",
                                          "\xE1\x83\x90", "\xEA\xB0\x80", "\xED\x9F\xBB", "\xEF\xBC\x91", "\xEF\xBF\xBD",
                                          "\xE3\x80\x82", "\xE2\x80\x99", "\xE2\x80\xA8", "\xE0\x80\x80", "\xED\xA0\x80",
                                          "\xC1\x81", "\x80", "\xE4\xB8"};
    std::string text(1, static_cast<char>(random()));
    const char* some[8];  // a few kinds at a time: there are blocks that only have what vectors take
    for (const char*& piece : some) piece = kPieces[random() % std::size(kPieces)];
    for (size_t i = 0; i < pieces; ++i) text += some[random() % std::size(some)];
    return text;
}

void test_random_text(std::mt19937& random) {
    for (int round = 0; round < 4000; ++round) {
        const std::string text = random_text(random, random() % 120);
        fuzz::check(reinterpret_cast<const uint8_t*>(text.data()), text.size());
    }
}

// What is full learns no more, and what it has learnt stays right, even where all hashes are equal.
void test_tables() {
    constexpr size_t kSlots = 16, kTaken = 10;
    ShortPieces few(kSlots);
    PieceLog log(kSlots);
    const auto piece = [](uint32_t i) { return std::string(16 + i % 20, 'x') + std::to_string(i); };
    size_t in_few = 0, in_log = 0;
    for (uint32_t i = 1; i < 100; ++i) {
        uint32_t ids[20] = {i, i + 1, i + 2};
        few.learn({i, 8ull << 56}, ids, i % 4 + 1);
        log.learn(piece(i), 7, ids, i % 20 + 1);
    }
    for (uint32_t i = 1; i < 100; ++i) {
        uint32_t ids[20 + PieceLog::kCopied];
        const Key key = {i, 8ull << 56};
        if (const ShortPieces::Slot* slot = few.find(key, few.index(key))) {
            LLMFAST_REQUIRE(ShortPieces::copy(*slot, ids) == i % 4 + 1 && ids[0] == i);
            ++in_few;
        }
        if (const PieceLog::Entry* entry = log.find(piece(i), 7)) {
            LLMFAST_REQUIRE(PieceLog::copy(*entry, ids) == i % 20 + 1 && ids[0] == i);
            ++in_log;
        }
    }
    LLMFAST_REQUIRE(in_few == kTaken && in_log == kTaken);
}

void test_threads(std::mt19937& random) {
    std::vector<std::string> texts;
    for (int i = 0; i < 200; ++i) texts.push_back(random_text(random, 400));
    const Encoder alone(fuzz::small_vocabulary(), Pattern::o200k), shared(fuzz::small_vocabulary(), Pattern::o200k);
    const auto ids_of = [&](const Encoder& encoder) {
        std::vector<std::vector<uint32_t>> all;
        for (const std::string& text : texts) {
            IdBuffer ids;
            encoder.encode(text, ids);
            all.emplace_back(ids.data(), ids.data() + ids.size());
        }
        return all;
    };
    const auto expected = ids_of(alone);
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back([&] { LLMFAST_REQUIRE(ids_of(shared) == expected); });
    for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main(int count, char** files) {
    for (int i = 1; i < count; ++i) {
        std::ifstream file(files[i], std::ios::binary);
        const std::string input((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        for (char pattern = 0; pattern < 7; ++pattern) {
            const std::string text = pattern + input.substr(std::min<size_t>(input.size(), 1));
            fuzz::check(reinterpret_cast<const uint8_t*>(text.data()), text.size());
        }
    }
    std::mt19937 random(20240229);
    test_classifiers(random);
    test_random_text(random);
    test_tables();
    test_threads(random);
    std::puts("ok");
}
