// The C++ core by itself, without Python: every instruction set classifies and merges alike, the fuzzer's corpus
// replays, random text holds what the fuzzer asks, and threads that share an encoder agree. Exits with 0 if all of it
// holds.
//
//     test_engine CORPUS_FILE...
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <new>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "encode/documents.h"
#include "fuzz/check.h"
#include "merge/merge_lanes.h"
#include "pretokenize/classify.h"
#include "system/cpu_features.h"

using namespace llmfast;

// How many allocations succeed from now on, on all threads.
constexpr int kNoLimit = 1 << 30;
static std::atomic<int> allocations_left = kNoLimit;

LLMFAST_NOINLINE void* operator new(size_t bytes) {
    if (allocations_left != kNoLimit && --allocations_left < 0) throw std::bad_alloc();
    if (void* const memory = std::malloc(bytes)) return memory;
    throw std::bad_alloc();
}
LLMFAST_NOINLINE void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
LLMFAST_NOINLINE void operator delete(void* memory) noexcept { std::free(memory); }
LLMFAST_NOINLINE void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

bool equal(const Masks& a, const Masks& b) {
    return a.letter == b.letter && a.upper == b.upper && a.digit == b.digit && a.space == b.space &&
           a.blank == b.blank && a.newline == b.newline && a.apostrophe == b.apostrophe && a.slash == b.slash &&
           a.high == b.high;
}

Classifier portable_classifier() {
    const NamedClassifier* all = classifiers();
    while (all[1].name) ++all;
    return all->classify;
}

void test_classifiers(std::mt19937& random) {
    for (int round = 0; round < 2000; ++round) {
        uint8_t block[64];
        for (uint8_t& byte : block) byte = static_cast<uint8_t>(random());
        Masks expected;
        portable_classifier()(block, expected);
        for (const NamedClassifier* one = classifiers(); one->name; ++one) {
            Masks masks;
            one->classify(block, masks);
            LLMFAST_REQUIRE(equal(masks, expected));
        }
    }
}

std::string random_text(std::mt19937& random, size_t pieces) {
    static const char* const kPieces[] = {"a",
                                          "Z",
                                          "s",
                                          "the",
                                          " ",
                                          "  ",
                                          "\n",
                                          "\r\n",
                                          "\t",
                                          "'",
                                          "'s",
                                          "'LL",
                                          "1",
                                          "12345",
                                          "/",
                                          ".",
                                          "...",
                                          "\xC3\xA9",
                                          "\xC5\xBF",
                                          "\xCC\x81",
                                          "\xE4\xB8\xAD",
                                          "\xE3\x80\x80",
                                          "\xC2\xA0",
                                          "\xF0\x9F\x98\x80",
                                          "\xFF",
                                          "\xE4",
                                          "HTTPServer",
                                          "\xD0\x9F",
                                          "\xD1\x80",
                                          "\xD9\xA3",
                                          "\xC7\x85",
                                          "\xE0\xA4\xB9",
                                          "\xE0\xA5\x8D",
                                          "\xE1\x83\x90",
                                          "\xEA\xB0\x80",
                                          "\xED\x9F\xBB",
                                          "\xEF\xBC\x91",
                                          "\xEF\xBF\xBD",
                                          "\xE3\x80\x82",
                                          "\xE2\x80\x99",
                                          "\xE2\x80\xA8",
                                          "\xE0\x80\x80",
                                          "\xED\xA0\x80",
                                          "\xC1\x81",
                                          "\x80",
                                          "\xE4\xB8"};
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

// Bytes, and tokens that are two others side by side, of few characters; ids in order of making or in any order.
Vocabulary random_vocabulary(std::mt19937& random, size_t merges, bool ordered) {
    std::vector<std::string> tokens, few;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    for (const char* part : {"a", "b", " ", "-", "\xC3", "\xA9", "\xE4\xB8\xAD", "\xE4", "\xB8\xAD"})
        few.emplace_back(part);
    std::set<std::string> known(tokens.begin(), tokens.end());
    while (tokens.size() < 256 + merges) {
        const std::string token = few[random() % few.size()] + few[random() % few.size()];
        if (token.size() > 40 || !known.insert(token).second) continue;
        tokens.push_back(token);
        few.push_back(token);
    }
    std::vector<uint32_t> ids(tokens.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint32_t>(i);
    if (!ordered) std::shuffle(ids.begin(), ids.end(), random);
    if (random() % 4 == 0) std::replace(ids.begin(), ids.end(), static_cast<uint32_t>(ids.size() - 1), kLargestId);
    return Vocabulary({tokens.begin(), tokens.end()}, ids);
}

std::string random_piece(std::mt19937& random, size_t most) {
    static const char* const kParts[] = {"a", "b", " ", "-", "\xC3\xA9", "\xE4\xB8\xAD", "\xE4\xB8\x80", "x", "\xE4"};
    const size_t kinds = 1 + random() % std::size(kParts), size = 1 + random() % most;
    std::string piece;
    while (piece.size() < size) {
        const char* const part = kParts[random() % kinds];
        for (size_t times = random() % 8 ? 1 : 1 + random() % 20; times > 0; --times) piece += part;
    }
    return piece.substr(0, size);
}

// Few characters, repeated: tokens depend on bytes far away, and windows may fail to agree on one.
std::string repetitive_piece(std::mt19937& random, size_t most) {
    std::string motifs[3], piece;
    for (std::string& motif : motifs) {
        for (size_t size = 1 + random() % 4; size > 0; --size) motif += "ab -"[random() % 4];
    }
    while (piece.size() < most) {
        const std::string& motif = motifs[random() % 3];
        for (size_t times = 1 + random() % (random() % 3 ? 6 : 100); times > 0; --times) piece += motif;
    }
    return piece.substr(0, most);
}

// Every instruction set merges as the definition says, and so do long pieces, whatever the ranks.
void test_merging(std::mt19937& random) {
    for (int round = 0; round < 60; ++round) {
        const Vocabulary vocabulary = random_vocabulary(random, random() % 300, round % 2 == 0);
        const PairTable pairs(vocabulary);
        const auto merge = [&](size_t count, size_t most, auto make_piece, auto merge_all) {
            std::vector<std::string> texts(count);
            std::vector<std::vector<uint32_t>> parts;
            std::vector<Piece> pieces;
            for (std::string& text : texts) {
                text = make_piece(random, most);
                parts.emplace_back(text.size());
                pieces.push_back({parts.back().data(), text.size()});
            }
            merge_all(texts, pieces);
            for (size_t i = 0; i < texts.size(); ++i) {
                const std::vector<uint32_t> ids(pieces[i].ids, pieces[i].ids + pieces[i].count);
                LLMFAST_REQUIRE(ids == fuzz::merge_by_definition(vocabulary, texts[i]));
            }
        };
        for (const NamedLaneMerger* one = lane_mergers(); one->name; ++one) {
            merge(1 + random() % 100, kMostLaneParts, random_piece,
                  [&](const std::vector<std::string>& texts, std::vector<Piece>& pieces) {
                      std::vector<Piece*> all;
                      for (size_t i = 0; i < texts.size(); ++i) {
                          byte_tokens(pairs, texts[i], pieces[i].ids);
                          all.push_back(&pieces[i]);
                      }
                      one->merge(pairs.places(), all);
                  });
        }
        const auto merge_together = [&](const std::vector<std::string>& texts, std::vector<Piece>& pieces) {
            for (size_t i = 0; i < texts.size(); ++i) pieces[i].count = parts_of(pairs, texts[i], pieces[i].ids);
            MergeScratch scratch;
            merge_parts(pairs, pieces, scratch);
        };
        merge(1 + random() % 100, 200, random_piece, merge_together);
        merge(4, 100 + random() % 500, repetitive_piece, merge_together);
    }
}

// All pairs of bytes, of which as many merge as fill the table of pairs as far as it is ever filled.
void test_full_table() {
    constexpr uint32_t kFirsts = 127;
    std::vector<std::string> tokens;
    for (uint32_t byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    for (uint32_t pair = 0; pair < kFirsts * 256; ++pair) tokens.push_back(tokens[pair / 256] + tokens[pair % 256]);
    std::vector<uint32_t> ids(tokens.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint32_t>(i);
    const Vocabulary vocabulary({tokens.begin(), tokens.end()}, ids);
    const PairTable pairs(vocabulary);
    for (uint32_t pair = 0; pair < 1 << 16; ++pair) {
        LLMFAST_REQUIRE(pairs.find(pair / 256, pair % 256) == (pair < kFirsts * 256 ? 256 + pair : kNoToken));
    }
}

// A full cache takes no more, and what it has stays right, even where all hashes are equal.
void test_caches() {
    constexpr size_t kSlots = 16;
    ShortPieceCache few(kSlots);
    LongPieceCache log(kSlots);
    const auto piece = [](uint32_t i) { return std::string(16 + i % 20, 'x') + std::to_string(i); };
    size_t in_few = 0, in_log = 0;
    for (uint32_t i = 1; i < 100; ++i) {
        uint32_t ids[20] = {i, i + 1, i + 2};
        few.insert({i, 8ull << 56}, ids, i % 4 + 1);
        log.insert(piece(i), 7, ids, i % 20 + 1);
    }
    for (uint32_t i = 1; i < 100; ++i) {
        uint32_t ids[20 + LongPieceCache::kCopied];
        const Key key = {i, 8ull << 56};
        if (const ShortPieceCache::Slot* slot = few.find(key, few.index(key))) {
            LLMFAST_REQUIRE(ShortPieceCache::copy(*slot, ids) == i % 4 + 1 && ids[0] == i);
            ++in_few;
        }
        if (const LongPieceCache::Entry* entry = log.find(piece(i), 7)) {
            LLMFAST_REQUIRE(LongPieceCache::copy(*entry, ids) == i % 20 + 1 && ids[0] == i);
            ++in_log;
        }
    }
    LLMFAST_REQUIRE(in_few == kSlots / 8 * 5 && in_log == kSlots);
}

// Where memory runs out, on whichever thread, the caller gets an exception.
void test_memory_that_runs_out(std::mt19937& random) {
    std::vector<std::string> texts;
    for (int i = 0; i < 60; ++i) texts.push_back(random_text(random, 4000));
    const std::vector<std::string_view> documents(texts.begin(), texts.end());
    const Encoder encoder(fuzz::small_vocabulary(), Pattern::gpt2);
    size_t refused = 0;
    for (int allocations = 0; allocations < 200; ++allocations) {
        std::vector<int64_t> offsets(documents.size() + 1);
        allocations_left = allocations;
        try {
            encode_documents<uint32_t>(encoder, documents, std::nullopt, 4, offsets.data());
        } catch (const std::bad_alloc&) {
            ++refused;
        }
        allocations_left = kNoLimit;
    }
    LLMFAST_REQUIRE(refused > 3 && refused < 200);
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
    test_merging(random);
    test_full_table();
    test_random_text(random);
    test_caches();
    test_memory_that_runs_out(random);
    test_threads(random);
    std::puts("ok");
}
