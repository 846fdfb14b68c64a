// What a forward pass keeps between its steps: a row for each token of a pass.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "decoder/cpu_decoder.h"
#include "system/pages.h"

namespace llmfast {

constexpr size_t kPassTokens = 256;  // a longer batch goes in several passes: enough to reuse each weight

// Rows of numbers, each in cache lines of its own.
template <typename Number>
class Rows {
  public:
    Rows(size_t rows, size_t width)
        : step(round_up(std::max<size_t>(width, 1), 64 / sizeof(Number))), memory_(rows * step * sizeof(Number)) {}
    const size_t step;
    Number* row(size_t index) const { return static_cast<Number*>(memory_.data()) + index * step; }

  private:
    Pages memory_;
};

struct CpuDecoder::Workspace {
    Workspace(const Model& model, size_t members);

    Rows<float> residual, normed, qkv, mixed, added, up, active;
    // The input of the next product in bytes, if its weights are integers: for each token as many groups as its columns
    // have, without gaps.
    Rows<int8_t> bytes;
    Rows<float> scales;
    Rows<int32_t> sums;
    // Of each member, for attention.
    Rows<float> scores, head_sums;
    Rows<const void*> keys, values;
};

// Consecutive tokens of one chunk, at most kQueries.
struct QueryTile {
    size_t chunk, token, position, count;
};

struct CpuDecoder::Pass {
    Pass(const Batch& whole, size_t first_token, size_t tokens);

    const Batch& batch;
    const size_t first, count;                  // of the batch's tokens
    std::vector<size_t> chunk_of, position_of;  // by token of the pass
    std::vector<QueryTile> tiles;
    std::vector<size_t> wanted;  // tokens of the pass whose logits are wanted
    Cache* cache = nullptr;
    float* logits = nullptr;  // of the first of them
};

}  // namespace llmfast
