// Merging must be the definition for any vocabulary: libFuzzer's entry point; see run.sh.
//
// An input makes a vocabulary, random or trained, and a repetitive text. Built with -DLLMFAST_RANDOM_INPUTS, this needs
// no clang: a main function then draws inputs from a seed.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "encode/encoder.h"
#include "fuzz/check.h"
#include "merge/derive_merges.h"
#include "merge/merge.h"
#include "train/train.h"

namespace llmfast::fuzz {

// Hands out the bytes of an input, and zeros when there are none left.
class Input {
  public:
    Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
    size_t left() const { return static_cast<size_t>(end_ - at_); }
    uint8_t next() { return at_ < end_ ? *at_++ : uint8_t{0}; }

  private:
    const uint8_t *at_, *end_;
};

constexpr const char* kAlphabets[][4] = {{"-", "+", "=", "/"},
                                         {"a", "b", " ", "-"},
                                         {"\xE4\xB8\xAD", "\xC3\xA9", "a", "\xE4"},
                                         {"\n", " ", "\xF0\x9F\x98\x80", "."}};

// Runs of short motifs: each byte chooses two characters and how often they are repeated.
std::string repetitive_text(Input& input, const char* const* alphabet, size_t bytes) {
    std::string text;
    while (input.left() > 0 && bytes-- > 0) {
        const uint8_t byte = input.next();
        const std::string motif = std::string(alphabet[byte & 3]) + (byte & 16 ? alphabet[byte >> 2 & 3] : "");
        for (size_t times = byte >> 5 == 7 ? 40 : 1 + (byte >> 5); times > 0; --times) text += motif;
    }
    return text;
}

std::vector<std::string> all_bytes() {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    return tokens;
}

// Tokens that are two others, in any order of ids: most of them are not what training makes.
Vocabulary random_vocabulary(Input& input, const char* const* alphabet) {
    std::vector<std::string> tokens = all_bytes(), few(alphabet, alphabet + 4);
    std::set<std::string> known(tokens.begin(), tokens.end());
    for (size_t merges = input.next() % 64; merges > 0; --merges) {
        const std::string token = few[input.next() % few.size()] + few[input.next() % few.size()];
        if (token.size() > 60 || !known.insert(token).second) continue;
        tokens.push_back(token);
        few.push_back(token);
    }
    std::vector<uint32_t> ids(tokens.size());
    std::iota(ids.begin(), ids.end(), 0);
    if (const uint8_t seed = input.next(); seed & 1) std::shuffle(ids.begin(), ids.end(), std::minstd_rand(seed));
    return Vocabulary({tokens.begin(), tokens.end()}, ids);
}

Vocabulary trained_vocabulary(Input& input, const char* const* alphabet) {
    TrainOptions options;
    options.merges = input.next();
    options.tie_break = input.next() % 2 ? TieBreak::smallest_ids : TieBreak::greatest_bytes;
    std::iota(options.byte_order.begin(), options.byte_order.end(), 0);
    const std::string text = repetitive_text(input, alphabet, input.left() / 2);
    std::map<std::string, uint64_t> counts;
    const size_t width = 1 + input.next();
    for (size_t at = 0; at < text.size(); at += width) ++counts[text.substr(at, width)];
    std::vector<Word> words;
    for (const auto& [bytes, count] : counts) words.push_back({bytes, count});
    std::vector<std::string> tokens = all_bytes();
    std::set<std::string> known(tokens.begin(), tokens.end());
    for (const Merge& merge : learn_merges(words, options)) tokens.push_back(tokens[merge.left] + tokens[merge.right]);
    std::vector<std::string_view> distinct;
    std::vector<uint32_t> ids;
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (i >= 256 && !known.insert(tokens[i]).second) continue;  // two merges may make the same bytes
        distinct.push_back(tokens[i]);
        ids.push_back(static_cast<uint32_t>(i));
    }
    return Vocabulary(distinct, ids);
}

std::vector<uint32_t> merge(const PairTable& pairs, std::string_view text) {
    std::vector<uint32_t> ids(text.size());
    Piece piece = {ids.data(), parts_of(pairs, text, ids.data())};
    MergeScratch scratch;
    merge_parts(pairs, {&piece, 1}, scratch);
    ids.resize(piece.count);
    return ids;
}

// The parts of a token when the merges below its own rank are done, by the definition.
Parts parts_by_definition(const Vocabulary& vocabulary, size_t position) {
    std::vector<std::string_view> tokens;
    std::vector<uint32_t> ids;
    for (size_t at = 0; at < vocabulary.size(); ++at) {
        if (at >= position && vocabulary.token(at).size() > 1) continue;
        tokens.push_back(vocabulary.token(at));
        ids.push_back(vocabulary.id(at));
    }
    return merge_by_definition(Vocabulary(tokens, ids), vocabulary.token(position));
}

void check_vocabulary(const uint8_t* data, size_t size) {
    Input input(data, size);
    const uint8_t kind = input.next();
    const char* const* const alphabet = kAlphabets[kind >> 1 & 3];
    const Vocabulary vocabulary = kind & 1 ? trained_vocabulary(input, alphabet) : random_vocabulary(input, alphabet);
    const std::string text = repetitive_text(input, alphabet, 100).substr(0, 1500);
    if (text.empty()) return;
    const PairTable pairs(vocabulary);
    LLMFAST_REQUIRE(merge(pairs, text) == merge_by_definition(vocabulary, text));
    if (kind & 8) {
        std::vector<std::string_view> tokens;
        std::vector<uint32_t> ids;
        for (size_t at = 0; at < vocabulary.size(); ++at) {
            tokens.push_back(vocabulary.token(at));
            ids.push_back(vocabulary.id(at));
        }
        const size_t one = input.next() * vocabulary.size() / 256;
        LLMFAST_REQUIRE(derive_merges(tokens, ids)[one] == parts_by_definition(vocabulary, one));
    }
    if (kind & 16) {  // with a cache, which must answer the same when it is asked again
        const Encoder encoder(vocabulary, kPatterns[kind >> 5 & 1]);
        IdBuffer first, again;
        encoder.encode(text, first);
        encoder.encode(text, again);
        LLMFAST_REQUIRE(
            std::equal(first.data(), first.data() + first.size(), again.data(), again.data() + again.size()));
        LLMFAST_REQUIRE(first.size() == encoder.count(text));
    }
}

}  // namespace llmfast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    llmfast::fuzz::check_vocabulary(data, size);
    return 0;
}

#ifdef LLMFAST_RANDOM_INPUTS
int main(int argc, char** argv) {
    std::mt19937 random(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 0);
    for (int round = argc > 1 ? std::atoi(argv[1]) : 1000; round > 0; --round) {
        std::vector<uint8_t> data(3 + random() % 200);
        for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
        llmfast::fuzz::check_vocabulary(data.data(), data.size());
    }
}
#endif
