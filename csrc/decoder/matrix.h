// Weight matrices, packed once for products.
//
// Rows lie in panels of 16, one row to a vector lane, so that a product needs no sum across lanes: each output is one
// chain of additions over the columns, whatever else is computed beside it. Within a panel, for W of shape (rows,
// columns):
//
//   float32   [column][16]
//   bfloat16  [column][16], rows 0, 8, 1, 9, ..., 7, 15: two rows share 32 bits, of which either half is a float32
//   int8      [column / 4][16][4], each row times a scale
//   int4      [column / 32]: [4][16][4] bytes, then 16 scales in bfloat16 in the order above. Byte [i][row][j] holds
//             columns 8i + j (low half) and 8i + 4 + j (high half) of the group of 32, each plus 8
//
// Rows are filled up to whole panels, and columns of int8 and int4 to whole groups, with zeros.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "system/pages.h"

namespace llmfast {

enum class Format { kFloat32, kBfloat16, kInt8, kInt4 };

std::optional<Format> format_named(std::string_view name);

constexpr size_t kPanel = 16;                         // rows
constexpr size_t kGroup = 32;                         // columns that share a scale, of int4 weights and of their inputs
constexpr size_t kInt4Nibbles = kPanel * kGroup / 2;  // bytes
constexpr size_t kInt4Group = kInt4Nibbles + 2 * kPanel;

constexpr size_t round_up(size_t count, size_t multiple) { return (count + multiple - 1) / multiple * multiple; }
constexpr bool is_integer(Format format) { return format == Format::kInt8 || format == Format::kInt4; }

inline float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// To the nearest, ties to even; NaN stays NaN.
inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Where lane `lane` of 16 bfloat16 numbers is stored.
constexpr size_t bfloat16_place(size_t lane) { return lane < 8 ? 2 * lane : 2 * lane - 15; }

class Matrix {
  public:
    // Packs `weights` (rows, columns), at least one of each, row after row, on up to `threads` threads. int8: each row
    // is scaled by its largest weight. int4: each group of 32 has the scale of least squared error. What is not finite
    // becomes NaN.
    Matrix(const float* weights, size_t rows, size_t columns, Format format, size_t threads);

    size_t rows() const { return rows_; }
    size_t columns() const { return columns_; }
    size_t panels() const { return round_up(rows_, kPanel) / kPanel; }
    Format format() const { return format_; }
    size_t bytes() const { return panels() * panel_bytes_ + scales_.size() * sizeof(float); }

    const uint8_t* panel(size_t index) const { return data() + index * panel_bytes_; }
    // int8 only: the scales of a panel's rows.
    const float* scales(size_t panel) const { return scales_.data() + panel * kPanel; }

    // Writes the weights of a row as products see them.
    void unpack_row(size_t row, float* weights) const;

  private:
    void pack_row(const float* weights, size_t row);
    uint8_t* data() const { return static_cast<uint8_t*>(data_.data()); }

    size_t rows_, columns_;
    Format format_;
    size_t panel_bytes_;
    Pages data_;  // starts with zeros
    std::vector<float> scales_;
};

}  // namespace llmfast
