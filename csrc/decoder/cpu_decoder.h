// A whole decoder's forward pass on a CPU, for the tokens of many sequences at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "decoder/cache.h"
#include "decoder/crew.h"
#include "decoder/kernels/kernels.h"
#include "decoder/matrix.h"

namespace llmfast {

struct Shape {
    size_t width, heads, kv_heads, head_width, ff_width, vocabulary, context;
    float norm_eps;
    float embedding_scale;
    Activation activation;
};

// RMSNorm; LayerNorm if there is a bias.
struct Norm {
    std::vector<float> weight, bias;
    const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

struct Linear {
    std::shared_ptr<const Matrix> matrix;
    std::vector<float> bias;  // filled up to whole panels; or empty
    bool reads_bytes() const { return is_integer(matrix->format()); }
};

struct Layer {
    Norm attention_norm;
    Linear qkv;
    Norm q_norm, k_norm;  // of each head; without weights where there are none
    Linear out;
    Norm feed_forward_norm;
    Linear up;  // [gate | up] if the activation is gated
    Linear down;
    size_t window;  // how many positions a token sees, its own included
};

struct Model {
    Shape shape;
    std::shared_ptr<const Matrix> embedding, head;
    std::vector<float> smear;      // (width), the share of the token before in each embedding; or empty
    std::vector<float> positions;  // (context, width), or empty
    std::vector<float> cos, sin;   // (context, head_width / 2), or empty
    std::vector<Layer> layers;
    Norm norm;
};

// New tokens of one sequence, behind `past` tokens that the cache holds.
struct Chunk {
    size_t past;
    size_t first, count;    // in the tokens of the batch
    const int32_t* blocks;  // that hold the sequence's positions, the new ones among them
    int32_t previous;       // the token before the first; negative at the start of a sequence
};

struct Batch {
    std::span<const int32_t> tokens;
    std::span<const Chunk> chunks;    // one after another, without gaps
    std::span<const int64_t> wanted;  // places in `tokens` whose logits are wanted, in ascending order
};

class CpuDecoder {
  public:
    CpuDecoder(Model model, const Kernels& kernels, size_t threads);
    ~CpuDecoder();

    const Model& model() const { return model_; }
    const Kernels& kernels() const { return kernels_; }
    size_t threads() const { return crew_.size(); }
    size_t logits_step() const { return model_.head->panels() * kPanel; }

    // Adds the keys and values of all tokens to the cache, and writes the wanted logits, [wanted][logits_step]. One
    // call at a time. All arguments must be in range.
    void forward(const Batch& batch, Cache& cache, float* logits);

  private:
    struct Workspace;
    struct Pass;

    // The steps of a pass. All members run each together, and all that a step writes is there when it returns.
    void run_pass(const Pass& pass, Member& member);
    void embed(const Pass& pass, Member& member);
    void embed_token(const Pass& pass, size_t token, float* row) const;
    void normalize(const Pass& pass, Member& member, const Norm& norm, bool adds, const Linear& next);
    void multiply(Member& member, const Linear& linear, const float* x, size_t x_step, float* y, size_t y_step,
                  size_t tokens);
    template <typename Number>
    void attend(const Pass& pass, Member& member, size_t layer);
    void quantize(const Pass& pass, Member& member, const Linear& next);
    void activate(const Pass& pass, Member& member, const Linear& next);
    void finish(const Pass& pass, Member& member);

    void normalize_row(const Norm& norm, size_t token, bool adds, size_t to, const Linear& next);
    void quantize_part(const float* values, size_t width, size_t row, size_t column, size_t columns);
    template <typename Number>
    void rotate_and_keep(const Pass& pass, size_t layer, size_t token, size_t kv_head);
    void rotate(const Norm& norm, size_t position, float* head) const;
    template <typename Number>
    void attend_tile(const Pass& pass, const Member& member, size_t layer, size_t tile, size_t kv_head);

    const Model model_;
    const Kernels& kernels_;
    Crew crew_;
    std::mutex mutex_;
    std::unique_ptr<Workspace> workspace_;
};

}  // namespace llmfast
