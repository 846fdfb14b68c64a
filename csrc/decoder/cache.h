// Keys and values of all layers, in blocks of positions that a block manager numbers.
//
// A block of one layer and one key/value head holds its keys in panels [head_width][16 positions], as the weights of
// products with queries, and its values [position][head_width, filled up to whole vectors].
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "decoder/matrix.h"
#include "system/pages.h"

namespace llmfast {

class Cache {
  public:
    // `block_size_` positions in each of `blocks_`; a multiple of 16. Numbers are float32 or bfloat16.
    Cache(size_t layers_, size_t kv_heads_, size_t head_width_, size_t blocks_, size_t block_size_, Format numbers_)
        : layers(layers_),
          kv_heads(kv_heads_),
          head_width(head_width_),
          value_step(round_up(head_width_, kPanel)),
          blocks(blocks_),
          block_size(block_size_),
          numbers(numbers_),
          number_bytes_(numbers_ == Format::kFloat32 ? sizeof(float) : sizeof(uint16_t)),
          data_(bytes()) {}

    const size_t layers, kv_heads, head_width, value_step, blocks, block_size;
    const Format numbers;

    size_t bytes() const { return layers * blocks * kv_heads * head_bytes(); }

    // What 16 positions from `position` in the block hold.
    template <typename Number>
    Number* keys(size_t layer, size_t block, size_t head, size_t position) {
        return numbers_of<Number>(layer, block, head) + position * head_width;
    }
    template <typename Number>
    Number* values(size_t layer, size_t block, size_t head, size_t position) {
        return numbers_of<Number>(layer, block, head) + block_size * head_width + position * value_step;
    }

    // Copies all that block `from` holds to block `to`.
    void copy(size_t from, size_t to) {
        for (size_t layer = 0; layer < layers; ++layer)
            std::memcpy(block_at(layer, to), block_at(layer, from), kv_heads * head_bytes());
    }

  private:
    size_t head_bytes() const { return block_size * (head_width + value_step) * number_bytes_; }
    uint8_t* block_at(size_t layer, size_t block) {
        return static_cast<uint8_t*>(data_.data()) + (layer * blocks + block) * kv_heads * head_bytes();
    }
    template <typename Number>
    Number* numbers_of(size_t layer, size_t block, size_t head) {
        return reinterpret_cast<Number*>(block_at(layer, block) + head * head_bytes());
    }

    size_t number_bytes_;
    Pages data_;  // the system provides a page when it is first written
};

}  // namespace llmfast
