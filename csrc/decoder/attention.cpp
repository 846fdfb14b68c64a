// The attention of a pass: new keys and values go into the cache, and queries attend to all that it holds.
#include <cmath>
#include <type_traits>

#include "decoder/cpu_decoder.h"
#include "decoder/workspace.h"

namespace llmfast {
namespace {

// Turns each pair of columns i and i + width / 2 by the angle of its position (half-split, as in Llama).
void turn(float* head, size_t half, const float* cos, const float* sin) {
    for (size_t i = 0; i < half; ++i) {
        const float first = head[i], second = head[i + half];
        head[i] = first * cos[i] - second * sin[i];
        head[i + half] = second * cos[i] + first * sin[i];
    }
}

void convert(float value, float& to) { to = value; }
void convert(float value, uint16_t& to) { to = to_bfloat16(value); }

// Where lane `lane` of 16 numbers is stored.
template <typename Number>
size_t place_of(size_t lane) {
    return std::is_same_v<Number, float> ? lane : bfloat16_place(lane);
}

}  // namespace

template <typename Number>
void CpuDecoder::attend(const Pass& pass, Member& member, size_t layer) {
    const size_t kv_heads = model_.shape.kv_heads;
    member.take_part(pass.count * kv_heads, 1, [&](size_t begin, size_t end) {
        for (size_t item = begin; item < end; ++item)
            rotate_and_keep<Number>(pass, layer, item / kv_heads, item % kv_heads);
    });
    member.meet();
    // Later tiles see more positions than earlier ones: members take turns.
    for (size_t item = member.index; item < pass.tiles.size() * kv_heads && !member.is_stopped(); item += member.size)
        attend_tile<Number>(pass, member, layer, item / kv_heads, item % kv_heads);
    member.meet();
}

// The queries, the key and the value of one key/value head: norms and rotation, and a place in the cache.
template <typename Number>
void CpuDecoder::rotate_and_keep(const Pass& pass, size_t layer, size_t token, size_t kv_head) {
    const Shape& shape = model_.shape;
    const size_t D = shape.head_width, group = shape.heads / shape.kv_heads, position = pass.position_of[token];
    float* const row = workspace_->qkv.row(token);
    for (size_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
        rotate(model_.layers[layer].q_norm, position, row + head * D);
    float* const key = row + (shape.heads + kv_head) * D;
    const float* const value = key + shape.kv_heads * D;
    rotate(model_.layers[layer].k_norm, position, key);

    Cache& cache = *pass.cache;
    const Chunk& chunk = pass.batch.chunks[pass.chunk_of[token]];
    const size_t block = static_cast<size_t>(chunk.blocks[position / cache.block_size]);
    const size_t at = position % cache.block_size, lane = at % kPanel;
    Number* const keys = cache.keys<Number>(layer, block, kv_head, at - lane) + place_of<Number>(lane);
    for (size_t i = 0; i < D; ++i) convert(key[i], keys[i * kPanel]);
    Number* const values = cache.values<Number>(layer, block, kv_head, at);
    for (size_t i = 0; i < D; ++i) convert(value[i], values[i / kPanel * kPanel + place_of<Number>(i % kPanel)]);
}

void CpuDecoder::rotate(const Norm& norm, size_t position, float* head) const {
    const size_t D = model_.shape.head_width, half = D / 2;
    if (!norm.weight.empty())
        kernels_.normalize(head, D, norm.weight.data(), norm.bias_or_null(), model_.shape.norm_eps, head);
    if (!model_.cos.empty()) turn(head, half, model_.cos.data() + position * half, model_.sin.data() + position * half);
}

template <typename Number>
void CpuDecoder::attend_tile(const Pass& pass, const Member& member, size_t layer, size_t tile, size_t kv_head) {
    const Shape& shape = model_.shape;
    const QueryTile& queries = pass.tiles[tile];
    Cache& cache = *pass.cache;
    const Chunk& chunk = pass.batch.chunks[queries.chunk];
    const void** const keys = workspace_->keys.row(member.index);
    const void** const values = workspace_->values.row(member.index);
    for (size_t position = 0; position < queries.position + queries.count; position += kPanel) {
        const size_t block = static_cast<size_t>(chunk.blocks[position / cache.block_size]);
        keys[position / kPanel] = cache.keys<Number>(layer, block, kv_head, position % cache.block_size);
        values[position / kPanel] = cache.values<Number>(layer, block, kv_head, position % cache.block_size);
    }
    const size_t D = shape.head_width, group = shape.heads / shape.kv_heads;
    for (size_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const Heads<Number> heads{
            .keys = reinterpret_cast<const Number* const*>(keys),
            .values = reinterpret_cast<const Number* const*>(values),
            .head_width = D,
            .value_step = cache.value_step,
            .queries = workspace_->qkv.row(queries.token) + head * D,
            .query_step = workspace_->qkv.step,
            .count = queries.count,
            .position = queries.position,
            .window = model_.layers[layer].window,
            .scale = 1 / std::sqrt(static_cast<float>(D)),
            .mixed = workspace_->mixed.row(queries.token) + head * D,
            .mixed_step = workspace_->mixed.step,
            .scores = workspace_->scores.row(member.index),
            .sums = workspace_->head_sums.row(member.index),
        };
        if constexpr (std::is_same_v<Number, float>) {
            kernels_.attend_float32(heads);
        } else {
            kernels_.attend_bfloat16(heads);
        }
    }
}

template void CpuDecoder::attend<float>(const Pass&, Member&, size_t);
template void CpuDecoder::attend<uint16_t>(const Pass&, Member&, size_t);

}  // namespace llmfast
