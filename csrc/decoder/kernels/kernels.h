// The arithmetic of the decoder, compiled once for each instruction set. All give the same bits: every sum has a fixed
// order, and every multiplication and addition is fused, or not, by name.
#pragma once

#include <cstddef>
#include <cstdint>

#include "decoder/matrix.h"

// Before a loop with few iterations, whose arrays shall be registers.
#if defined(__clang__)
#define LLMFAST_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define LLMFAST_UNROLL _Pragma("GCC unroll 16")
#else
#define LLMFAST_UNROLL
#endif

namespace llmfast {

// What a matrix is multiplied by: the vectors of some tokens. Products with integer weights read bytes, which are
// values / scale for each group of 32 columns.
struct Input {
    const float* values = nullptr;  // [token][step]
    size_t step = 0;
    const int8_t* bytes = nullptr;  // [token][groups * 32]
    const float* scales = nullptr;  // [token][groups]
    const int32_t* sums = nullptr;  // [token][groups], of the bytes
    size_t groups = 0;
};

// A part of a sequence's queries against its keys and values, for one head.
template <typename Number>
struct Heads {
    // Keys and values of 16 positions each: keys [head_width][16], values [position][value_step].
    const Number* const* keys;
    const Number* const* values;
    size_t head_width;
    size_t value_step;     // head_width, rounded up to whole vectors
    const float* queries;  // [query][query_step]
    size_t query_step;
    size_t count;     // queries, at most kQueries
    size_t position;  // of the first query; the others follow
    size_t window;    // how many positions a query sees, its own included
    float scale;
    float* mixed;  // [query][mixed_step]
    size_t mixed_step;
    float* scores;  // room for [query][positions, rounded up to 16]
    float* sums;    // room for [query][value_step]
};

constexpr size_t kQueries = 6;

enum class Activation { kGelu, kGeluTanh, kSwiglu, kGeglu, kGegluTanh };
constexpr bool is_gated(Activation activation) { return activation >= Activation::kSwiglu; }

struct Kernels {
    const char* name;
    // y[token][row] for the rows of panels from `first` to `last`, with the bias if there is one (filled up to whole
    // panels).
    void (*multiply)(const Matrix& weights, const Input& x, size_t tokens, size_t first, size_t last, const float* bias,
                     float* y, size_t y_step);
    void (*attend_float32)(const Heads<float>& heads);
    void (*attend_bfloat16)(const Heads<uint16_t>& heads);
    // RMSNorm, or LayerNorm if there is a bias. `to` may be `from`.
    void (*normalize)(const float* from, size_t width, const float* weight, const float* bias, float eps, float* to);
    // a += b.
    void (*add)(float* a, const float* b, size_t width);
    // activation(from), times `up` if it is gated. `to` may be `from`.
    void (*activate)(Activation activation, const float* from, const float* up, size_t width, float* to);
    // One vector in bytes, for Input. The scale is NaN if a number is not finite.
    void (*quantize)(const float* from, size_t width, int8_t* bytes, float* scales, int32_t* sums);
};

// The ones that this CPU supports, the fastest first; the last is portable C++. The list ends with a null pointer.
const Kernels* const* all_kernels();

const Kernels& portable_kernels();
const Kernels* avx2_kernels();  // null where this CPU has none

}  // namespace llmfast
