// The decoder by itself, without Python: every instruction set, any number of threads and any cut of the tokens give
// the same bits, and a call can be stopped. Meant for the sanitizers too.
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>

#include "decoder/cpu_decoder.h"
#include "fuzz/check.h"
#include "system/interrupt.h"

using namespace llmfast;

namespace {

constexpr size_t kTokens = 300;

std::vector<float> drawn(std::mt19937& random, size_t count, float size, float center = 0) {
    std::normal_distribution<float> normal(center, size);
    std::vector<float> numbers(count);
    for (float& number : numbers) number = normal(random);
    return numbers;
}

// A model with a norm with bias, or rotations and norms of heads; widths are no multiples of a vector's.
Model made_up_model(Format format, bool is_llama) {
    std::mt19937 random(1);
    const size_t E = 40, H = 4, K = is_llama ? 2 : 4, D = 24, F = 50, V = 67, T = 320;
    const auto matrix = [&](size_t rows, size_t columns) {
        return std::make_shared<Matrix>(drawn(random, rows * columns, 0.2f).data(), rows, columns, format, 2);
    };
    const auto norm = [&](size_t width) {
        return Norm{drawn(random, width, 0.1f, 1), is_llama ? std::vector<float>{} : drawn(random, width, 0.1f)};
    };
    const auto linear = [&](size_t rows, size_t columns) {
        Linear made{matrix(rows, columns), {}};
        if (!is_llama) made.bias = drawn(random, round_up(rows, kPanel), 0.1f);
        return made;
    };
    const auto table = matrix(V, E);
    Model model{{E, H, K, D, F, V, T, 1e-5f, 1, is_llama ? Activation::kSwiglu : Activation::kGelu},
                table,
                table,
                is_llama ? std::vector<float>{} : drawn(random, E, 0.1f),
                is_llama ? std::vector<float>{} : drawn(random, T * E, 0.1f),
                is_llama ? drawn(random, T * D / 2, 0.5f) : std::vector<float>{},
                is_llama ? drawn(random, T * D / 2, 0.5f) : std::vector<float>{},
                {},
                norm(E)};
    for (size_t window : {size_t{19}, std::numeric_limits<size_t>::max()}) {
        model.layers.push_back({norm(E), linear((H + 2 * K) * D, E), is_llama ? norm(D) : Norm{},
                                is_llama ? norm(D) : Norm{}, linear(E, H * D), norm(E), linear(is_llama ? 2 * F : F, E),
                                linear(E, F), window});
    }
    return model;
}

std::vector<float> logits_of(CpuDecoder& decoder, Format numbers, const std::vector<size_t>& cuts) {
    const Shape& shape = decoder.model().shape;
    Cache cache(decoder.model().layers.size(), shape.kv_heads, shape.head_width, 24, 32, numbers);
    std::vector<int32_t> tokens(kTokens), blocks(10);
    for (size_t i = 0; i < kTokens; ++i) tokens[i] = static_cast<int32_t>(i * i % shape.vocabulary);
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>((i * 7 + 3) % 24);
    std::vector<float> logits(kTokens * decoder.logits_step());
    size_t begin = 0;
    for (size_t end : cuts) {
        const Chunk chunk{begin, 0, end - begin, blocks.data(), begin ? tokens[begin - 1] : -1};
        std::vector<int64_t> wanted(end - begin);
        std::iota(wanted.begin(), wanted.end(), 0);
        decoder.forward({{tokens.data() + begin, end - begin}, {&chunk, 1}, wanted}, cache,
                        logits.data() + begin * decoder.logits_step());
        begin = end;
    }
    return logits;
}

void same_bits(Format format, Format numbers, bool is_llama) {
    const std::vector<std::vector<size_t>> all_cuts = {{kTokens}, {1, 2, 5, 11, 30, 64, 65, 290, kTokens}};
    std::vector<float> expected;
    for (const Kernels* const* kernels = all_kernels(); *kernels; ++kernels) {
        for (const size_t threads : {1, 3}) {
            CpuDecoder decoder(made_up_model(format, is_llama), **kernels, threads);
            for (const auto& cuts : all_cuts) {
                const std::vector<float> found = logits_of(decoder, numbers, cuts);
                if (expected.empty()) expected = found;
                LLMFAST_REQUIRE(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
            }
        }
    }
    for (const float logit : expected) LLMFAST_REQUIRE(logit - logit == 0);
}

void stops() {
    CpuDecoder decoder(made_up_model(Format::kFloat32, true), portable_kernels(), 2);
    const std::vector<float> before = logits_of(decoder, Format::kFloat32, {kTokens});
    bool is_stopped = false;
    try {
        Interrupt interrupt([] { return true; }, std::chrono::milliseconds{0});
        logits_of(decoder, Format::kFloat32, {kTokens});
    } catch (const Stopped&) {
        is_stopped = true;
    }
    LLMFAST_REQUIRE(is_stopped);
    LLMFAST_REQUIRE(logits_of(decoder, Format::kFloat32, {kTokens}) == before);
}

}  // namespace

int main() {
    for (const Format format : {Format::kFloat32, Format::kBfloat16, Format::kInt8, Format::kInt4})
        for (const bool is_llama : {false, true})
            same_bits(format, is_llama ? Format::kBfloat16 : Format::kFloat32, is_llama);
    stops();
    std::puts("decoder: all right");
}
