// What must hold for any bytes: used by the fuzzer and by the replay of its corpus.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "encode/encoder.h"

namespace llmfast::fuzz {

#define LLMFAST_REQUIRE(condition)                                                     \
    do {                                                                               \
        if (!(condition)) {                                                            \
            std::fprintf(stderr, "%s:%d: %s fails\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                              \
        }                                                                              \
    } while (false)

constexpr Pattern kPatterns[] = {Pattern::none,  Pattern::gpt2,  Pattern::cl100k,  Pattern::llama3,
                                 Pattern::qwen2, Pattern::o200k, Pattern::deepseek};

// Every byte, then tokens that overlap one another: runs, parts of characters, tokens over character boundaries.
inline Vocabulary small_vocabulary() {
    static std::vector<std::string> tokens;
    if (tokens.empty()) {
        for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
        for (const char* token :
             {"  ",       "    ",         "\n\n",     "th",    "he",       "the",          " the",
              "in",       "ing",          "'s",       "aa",    "aaaa",     "ab",           "ba",
              "aba",      "ca",           "cab",      "12",    "123",      "\xD0",         "\xC3\xA9",
              "\xE4\xB8", "\xE4\xB8\xAD", "\xAD\xE6", " \xE4", "\xE6\x96", "\xE6\x96\x87", "\xE4\xB8\xAD\xE6\x96\x87",
              "\xF0\x9F", "\xF0\x9F\x98", "..",       "...",   "    x"}) {
            if (std::string_view(token).size() > 1) tokens.emplace_back(token);
        }
    }
    std::vector<std::string_view> views(tokens.begin(), tokens.end());
    std::vector<uint32_t> ids(tokens.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint32_t>(i);
    return Vocabulary(views, ids);
}

inline std::vector<uint32_t> split_all(Pattern pattern, std::string_view text, size_t capacity) {
    std::vector<uint32_t> ends, some(capacity);
    uint32_t at = 0;
    while (at < text.size()) {
        const size_t count = split(pattern, text.data() + at, text.size() - at, some.data(), capacity);
        LLMFAST_REQUIRE(count > 0 && count <= capacity);
        for (size_t i = 0; i < count; ++i) ends.push_back(at + some[i]);
        at = ends.back();
    }
    return ends;
}

// The definition of merging, word for word.
inline std::vector<uint32_t> merge_by_definition(const Vocabulary& vocabulary, std::string_view piece) {
    std::vector<std::string> parts;
    for (const char byte : piece) parts.emplace_back(1, byte);
    while (true) {
        uint32_t lowest = kNoToken;
        size_t best = 0;
        for (size_t i = 0; i + 1 < parts.size(); ++i) {
            const uint32_t rank = vocabulary.find(parts[i] + parts[i + 1]);
            if (rank < lowest) lowest = rank, best = i;
        }
        if (lowest == kNoToken) break;
        parts[best] += parts[best + 1];
        parts.erase(parts.begin() + static_cast<ptrdiff_t>(best) + 1);
    }
    std::vector<uint32_t> ids;
    for (const std::string& part : parts) ids.push_back(vocabulary.find(part));
    return ids;
}

// One input: a byte that picks the pattern, then text.
inline void check(const uint8_t* data, size_t size) {
    if (size == 0) return;
    static const Vocabulary vocabulary = small_vocabulary();
    static Encoder encoders[] = {{small_vocabulary(), kPatterns[0]}, {small_vocabulary(), kPatterns[1]},
                                 {small_vocabulary(), kPatterns[2]}, {small_vocabulary(), kPatterns[3]},
                                 {small_vocabulary(), kPatterns[4]}, {small_vocabulary(), kPatterns[5]},
                                 {small_vocabulary(), kPatterns[6]}};
    const Encoder& encoder = encoders[data[0] % std::size(kPatterns)];
    // A copy of exact size, for the sanitizer to see reads behind it.
    const std::vector<char> copy(data + 1, data + size);
    const std::string_view text(copy.data(), copy.size());

    const std::vector<uint32_t> ends = split_all(encoder.pattern(), text, 256);
    LLMFAST_REQUIRE(ends == split_all(encoder.pattern(), text, 1));  // by blocks, and one character at a time

    IdBuffer ids;
    encoder.encode(text, ids);
    LLMFAST_REQUIRE(ids.size() == encoder.count(text));
    std::string decoded;
    for (size_t i = 0; i < ids.size(); ++i) decoded += vocabulary.bytes(ids.data()[i]);
    LLMFAST_REQUIRE(decoded == text);

    if (text.size() > 512) return;
    std::vector<uint32_t> expected;
    uint32_t start = 0;
    for (const uint32_t end : ends) {
        const std::string_view piece = text.substr(start, end - start);
        const uint32_t whole = vocabulary.find(piece);
        if (whole != kNoToken) {
            expected.push_back(whole);
        } else {
            for (const uint32_t id : merge_by_definition(vocabulary, piece)) expected.push_back(id);
        }
        start = end;
    }
    LLMFAST_REQUIRE(expected == std::vector<uint32_t>(ids.data(), ids.data() + ids.size()));

    const size_t cut = certain_boundary(encoder.pattern(), text.data(), text.size(), text.size() / 2);
    std::vector<uint32_t> halves = split_all(encoder.pattern(), text.substr(0, cut), 256);
    for (const uint32_t end : split_all(encoder.pattern(), text.substr(cut), 256)) {
        halves.push_back(static_cast<uint32_t>(cut) + end);
    }
    LLMFAST_REQUIRE(halves == ends);
}

}  // namespace llmfast::fuzz
