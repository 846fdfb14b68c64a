#include "decoder/cpu_decoder.h"

#include <algorithm>
#include <utility>

#include "decoder/workspace.h"

namespace llmfast {
namespace {

constexpr size_t kTogether = 4;         // panels that a product with one vector takes at once
constexpr double kBetweenChecks = 4e6;  // multiplications between two looks for an interrupt: about a millisecond

size_t widest_input(const Shape& shape) {
    return std::max({shape.width, shape.heads * shape.head_width, shape.ff_width});
}

size_t filled(const Linear& linear) { return linear.matrix->panels() * kPanel; }

template <typename Size>
size_t widest(const Model& model, Size size) {
    size_t most = 0;
    for (const Layer& layer : model.layers) most = std::max(most, size(layer));
    return most;
}

}  // namespace

CpuDecoder::Workspace::Workspace(const Model& model, size_t members)
    : residual(kPassTokens, model.shape.width),
      normed(kPassTokens, model.shape.width),
      qkv(kPassTokens, widest(model, [](const Layer& layer) { return filled(layer.qkv); })),
      mixed(kPassTokens, model.shape.heads * model.shape.head_width),
      added(kPassTokens, round_up(model.shape.width, kPanel)),
      up(kPassTokens, widest(model, [](const Layer& layer) { return filled(layer.up); })),
      active(kPassTokens, model.shape.ff_width),
      bytes(kPassTokens, round_up(widest_input(model.shape), kGroup)),
      scales(kPassTokens, round_up(widest_input(model.shape), kGroup) / kGroup),
      sums(kPassTokens, round_up(widest_input(model.shape), kGroup) / kGroup),
      scores(members, kQueries * round_up(model.shape.context, kPanel)),
      head_sums(members, kQueries * round_up(model.shape.head_width, kPanel)),
      keys(members, round_up(model.shape.context, kPanel) / kPanel),
      values(members, round_up(model.shape.context, kPanel) / kPanel) {}

CpuDecoder::Pass::Pass(const Batch& whole, size_t first_token, size_t tokens)
    : batch(whole), first(first_token), count(tokens) {
    size_t chunk = 0;
    for (size_t token = 0; token < count; ++token) {
        while (batch.chunks[chunk].first + batch.chunks[chunk].count <= first + token) ++chunk;
        const size_t position = batch.chunks[chunk].past + (first + token - batch.chunks[chunk].first);
        const bool extends = !tiles.empty() && tiles.back().chunk == chunk && tiles.back().count < kQueries;
        if (extends) {
            ++tiles.back().count;
        } else {
            tiles.push_back({chunk, token, position, 1});
        }
        chunk_of.push_back(chunk);
        position_of.push_back(position);
    }
    for (const int64_t place : batch.wanted) {
        const size_t at = static_cast<size_t>(place);
        if (first <= at && at < first + count) wanted.push_back(at - first);
    }
}

CpuDecoder::CpuDecoder(Model model, const Kernels& kernels, size_t threads)
    : model_(std::move(model)),
      kernels_(kernels),
      crew_(threads),
      workspace_(std::make_unique<Workspace>(model_, threads)) {}

CpuDecoder::~CpuDecoder() = default;

void CpuDecoder::forward(const Batch& batch, Cache& cache, float* logits) {
    const std::lock_guard lock(mutex_);
    for (size_t first = 0; first < batch.tokens.size(); first += kPassTokens) {
        Pass pass(batch, first, std::min(kPassTokens, batch.tokens.size() - first));
        pass.cache = &cache;
        pass.logits = logits;
        logits += pass.wanted.size() * logits_step();
        crew_.run([&](Member& member) { run_pass(pass, member); });
    }
}

void CpuDecoder::run_pass(const Pass& pass, Member& member) {
    Workspace& work = *workspace_;
    embed(pass, member);
    for (size_t index = 0; index < model_.layers.size(); ++index) {
        const Layer& layer = model_.layers[index];
        normalize(pass, member, layer.attention_norm, index > 0, layer.qkv);
        multiply(member, layer.qkv, work.normed.row(0), work.normed.step, work.qkv.row(0), work.qkv.step, pass.count);
        if (pass.cache->numbers == Format::kBfloat16) {
            attend<uint16_t>(pass, member, index);
        } else {
            attend<float>(pass, member, index);
        }
        quantize(pass, member, layer.out);
        multiply(member, layer.out, work.mixed.row(0), work.mixed.step, work.added.row(0), work.added.step, pass.count);
        normalize(pass, member, layer.feed_forward_norm, true, layer.up);
        multiply(member, layer.up, work.normed.row(0), work.normed.step, work.up.row(0), work.up.step, pass.count);
        activate(pass, member, layer.down);
        multiply(member, layer.down, work.active.row(0), work.active.step, work.added.row(0), work.added.step,
                 pass.count);
    }
    finish(pass, member);
}

void CpuDecoder::embed(const Pass& pass, Member& member) {
    member.take_part(pass.count, 1, [&](size_t begin, size_t end) {
        for (size_t token = begin; token < end; ++token) embed_token(pass, token, workspace_->residual.row(token));
    });
    member.meet();
}

void CpuDecoder::embed_token(const Pass& pass, size_t token, float* row) const {
    const size_t width = model_.shape.width, at = pass.first + token;
    const float scale = model_.shape.embedding_scale;
    model_.embedding->unpack_row(static_cast<size_t>(pass.batch.tokens[at]), row);
    for (size_t i = 0; i < width; ++i) row[i] *= scale;
    const Chunk& chunk = pass.batch.chunks[pass.chunk_of[token]];
    const int32_t previous = at > chunk.first ? pass.batch.tokens[at - 1] : chunk.previous;
    if (!model_.smear.empty() && previous >= 0) {
        float* const before = workspace_->normed.row(token);  // which holds nothing yet
        model_.embedding->unpack_row(static_cast<size_t>(previous), before);
        for (size_t i = 0; i < width; ++i) row[i] += model_.smear[i] * (before[i] * scale);
    }
    if (!model_.positions.empty()) kernels_.add(row, model_.positions.data() + pass.position_of[token] * width, width);
}

// The sum of the residual stream and what the last product adds to it, and its norm, ready for the next product.
void CpuDecoder::normalize(const Pass& pass, Member& member, const Norm& norm, bool adds, const Linear& next) {
    member.take_part(pass.count, 1, [&](size_t begin, size_t end) {
        for (size_t token = begin; token < end; ++token) normalize_row(norm, token, adds, token, next);
    });
    member.meet();
}

void CpuDecoder::normalize_row(const Norm& norm, size_t token, bool adds, size_t to, const Linear& next) {
    const size_t width = model_.shape.width;
    float *const residual = workspace_->residual.row(token), *const normed = workspace_->normed.row(to);
    if (adds) kernels_.add(residual, workspace_->added.row(token), width);
    kernels_.normalize(residual, width, norm.weight.data(), norm.bias_or_null(), model_.shape.norm_eps, normed);
    if (next.reads_bytes()) quantize_part(normed, width, to, 0, width);
}

// `columns` of the input of a product from `column` on, of `width` in all.
void CpuDecoder::quantize_part(const float* values, size_t width, size_t row, size_t column, size_t columns) {
    const size_t group = row * (round_up(width, kGroup) / kGroup) + column / kGroup;
    kernels_.quantize(values, columns, workspace_->bytes.row(0) + group * kGroup, workspace_->scales.row(0) + group,
                      workspace_->sums.row(0) + group);
}

void CpuDecoder::multiply(Member& member, const Linear& linear, const float* x, size_t x_step, float* y, size_t y_step,
                          size_t tokens) {
    const Matrix& matrix = *linear.matrix;
    const Input input{x,
                      x_step,
                      workspace_->bytes.row(0),
                      workspace_->scales.row(0),
                      workspace_->sums.row(0),
                      round_up(matrix.columns(), kGroup) / kGroup};
    const double per_panel = static_cast<double>(kPanel * matrix.columns() * tokens);
    const size_t at_once = round_up(static_cast<size_t>(kBetweenChecks / per_panel) + 1, kTogether);
    member.take_part(matrix.panels(), kTogether, [&](size_t begin, size_t end) {
        for (size_t panel = begin; panel < end && !member.is_stopped(); panel += at_once) {
            const size_t last = std::min(panel + at_once, end);
            kernels_.multiply(matrix, input, tokens, panel, last, linear.bias.empty() ? nullptr : linear.bias.data(), y,
                              y_step);
        }
    });
    member.meet();
}

void CpuDecoder::quantize(const Pass& pass, Member& member, const Linear& next) {
    if (!next.reads_bytes()) return;
    const size_t width = next.matrix->columns();
    member.take_part(pass.count, 1, [&](size_t begin, size_t end) {
        for (size_t token = begin; token < end; ++token)
            quantize_part(workspace_->mixed.row(token), width, token, 0, width);
    });
    member.meet();
}

void CpuDecoder::activate(const Pass& pass, Member& member, const Linear& next) {
    constexpr size_t kPart = 256;  // columns
    const size_t width = model_.shape.ff_width, parts = (width + kPart - 1) / kPart;
    member.take_part(pass.count * parts, 1, [&](size_t begin, size_t end) {
        for (size_t item = begin; item < end; ++item) {
            const size_t token = item / parts, column = item % parts * kPart, columns = std::min(kPart, width - column);
            const float* const from = workspace_->up.row(token) + column;
            float* const to = workspace_->active.row(token) + column;
            kernels_.activate(model_.shape.activation, from, from + width, columns, to);
            if (next.reads_bytes()) quantize_part(to, width, token, column, columns);
        }
    });
    member.meet();
}

void CpuDecoder::finish(const Pass& pass, Member& member) {
    if (pass.wanted.empty()) return;
    const Linear head{model_.head, {}};
    member.take_part(pass.wanted.size(), 1, [&](size_t begin, size_t end) {
        for (size_t row = begin; row < end; ++row)
            normalize_row(model_.norm, pass.wanted[row], !model_.layers.empty(), row, head);
    });
    member.meet();
    multiply(member, head, workspace_->normed.row(0), workspace_->normed.step, pass.logits, logits_step(),
             pass.wanted.size());
}

}  // namespace llmfast
