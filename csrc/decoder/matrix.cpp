#include "decoder/matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "system/interrupt.h"
#include "system/parallel.h"

namespace llmfast {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

size_t panel_bytes(size_t columns, Format format) {
    switch (format) {
        case Format::kFloat32: return columns * kPanel * sizeof(float);
        case Format::kBfloat16: return columns * kPanel * sizeof(uint16_t);
        case Format::kInt8: return round_up(columns, kGroup) * kPanel;
        default: return round_up(columns, kGroup) / kGroup * kInt4Group;
    }
}

// To the nearest integer, ties to even, for |value| < 2^22; unlike std::nearbyint, compilers vectorize it.
float rounded(float value) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the sum has no digits after the point
    return (value + kShift) - kShift;
}

// The largest magnitude; NaN if any number is not finite.
float largest(const float* values, size_t count) {
    float most = 0, odd = 0;
    for (size_t i = 0; i < count; ++i) {
        most = std::max(most, std::abs(values[i]));
        odd += values[i] * 0;
    }
    return most + odd;
}

// The scale d with the least squared error of d * q for integers q from -8 to 7. For a given rounding q of the weights
// the best d is sum(w * q) / sum(q * q), and the error falls by sum(w * q)^2 / sum(q * q): several roundings are tried.
float int4_scale(const float* weights) {
    const float most = largest(weights, kGroup);
    if (!(most > 0)) return most;  // 0 or NaN
    const float* const peak =
        std::max_element(weights, weights + kGroup, [](float a, float b) { return std::abs(a) < std::abs(b); });
    float best = 0, best_gain = -1;
    for (int step = -6; step <= 6; ++step) {
        const float inverse = -(8 + 0.2f * static_cast<float>(step)) / *peak;
        float products = 0, squares = 0;
        for (size_t i = 0; i < kGroup; ++i) {
            const float q = std::clamp(rounded(weights[i] * inverse), -8.0f, 7.0f);
            products += weights[i] * q;
            squares += q * q;
        }
        const float gain = products * products / squares;
        if (gain > best_gain) {
            best_gain = gain;
            best = products / squares;
        }
    }
    return best;
}

// What follows writes one row of a panel, or reads it back.

void pack_bfloat16(const float* weights, size_t columns, uint8_t* panel, size_t lane) {
    const size_t place = bfloat16_place(lane);
    for (size_t k = 0; k < columns; ++k) {
        const uint16_t bits = to_bfloat16(weights[k]);
        std::memcpy(panel + (k * kPanel + place) * sizeof(bits), &bits, sizeof(bits));
    }
}

float read_bfloat16(const uint8_t* numbers, size_t lane) {
    uint16_t bits;
    std::memcpy(&bits, numbers + bfloat16_place(lane) * sizeof(bits), sizeof(bits));
    return from_bfloat16(bits);
}

size_t int8_place(size_t column, size_t lane) { return column / 4 * (4 * kPanel) + 4 * lane + column % 4; }

// Returns the scale.
float pack_int8(const float* weights, size_t columns, uint8_t* panel, size_t lane) {
    const float scale = largest(weights, columns) / 127;
    if (!(scale > 0)) return scale;  // 0 or NaN, times zeros
    for (size_t k = 0; k < columns; ++k)
        panel[int8_place(k, lane)] = static_cast<uint8_t>(static_cast<int8_t>(rounded(weights[k] / scale)));
    return scale;
}

void pack_int4_group(const float* weights, uint8_t* group, size_t lane) {
    const uint16_t bits = to_bfloat16(int4_scale(weights));
    std::memcpy(group + kInt4Nibbles + bfloat16_place(lane) * sizeof(bits), &bits, sizeof(bits));
    const float scale = from_bfloat16(bits);
    for (size_t k = 0; k < kGroup; ++k) {
        // A scale of 0 or NaN makes the number 0 or NaN whatever is stored.
        const float q = std::abs(scale) > 0 ? std::clamp(rounded(weights[k] / scale), -8.0f, 7.0f) : 0;
        const int stored = static_cast<int>(q) + 8;
        uint8_t& byte = group[k / 8 * (4 * kPanel) + 4 * lane + k % 4];
        byte = static_cast<uint8_t>(byte | (k % 8 < 4 ? stored : stored << 4));
    }
}

float read_int4(const uint8_t* group, size_t k, size_t lane) {
    const uint8_t byte = group[k / 8 * (4 * kPanel) + 4 * lane + k % 4];
    const int stored = k % 8 < 4 ? byte & 15 : byte >> 4;
    return static_cast<float>(stored - 8) * read_bfloat16(group + kInt4Nibbles, lane);
}

}  // namespace

std::optional<Format> format_named(std::string_view name) {
    if (name == "float32") return Format::kFloat32;
    if (name == "bfloat16") return Format::kBfloat16;
    if (name == "int8") return Format::kInt8;
    if (name == "int4") return Format::kInt4;
    return std::nullopt;
}

Matrix::Matrix(const float* weights, size_t rows, size_t columns, Format format, size_t threads)
    : rows_(rows),
      columns_(columns),
      format_(format),
      panel_bytes_(panel_bytes(columns, format)),
      data_(panels() * panel_bytes_) {
    if (format == Format::kInt8) scales_.resize(panels() * kPanel);
    run_parallel(panels(), threads, [&](size_t index, size_t) {
        check_interrupt();
        const size_t end = std::min(rows_, (index + 1) * kPanel);
        for (size_t row = index * kPanel; row < end; ++row) pack_row(weights + row * columns_, row);
    });
}

void Matrix::pack_row(const float* weights, size_t row) {
    uint8_t* const panel = data() + row / kPanel * panel_bytes_;
    const size_t lane = row % kPanel;
    switch (format_) {
        case Format::kFloat32:
            for (size_t k = 0; k < columns_; ++k)
                std::memcpy(panel + (k * kPanel + lane) * sizeof(float), weights + k, sizeof(float));
            break;
        case Format::kBfloat16: pack_bfloat16(weights, columns_, panel, lane); break;
        case Format::kInt8: scales_[row] = pack_int8(weights, columns_, panel, lane); break;
        case Format::kInt4:
            for (size_t k = 0; k < columns_; k += kGroup) {
                float group[kGroup] = {};
                std::copy(weights + k, weights + std::min(k + kGroup, columns_), group);
                pack_int4_group(group, panel + k / kGroup * kInt4Group, lane);
            }
            break;
    }
}

void Matrix::unpack_row(size_t row, float* weights) const {
    const uint8_t* const data = panel(row / kPanel);
    const size_t lane = row % kPanel;
    for (size_t k = 0; k < columns_; ++k) {
        switch (format_) {
            case Format::kFloat32: std::memcpy(weights + k, data + (k * kPanel + lane) * sizeof(float), 4); break;
            case Format::kBfloat16: weights[k] = read_bfloat16(data + k * kPanel * sizeof(uint16_t), lane); break;
            case Format::kInt8:
                weights[k] = scales_[row] * static_cast<float>(static_cast<int8_t>(data[int8_place(k, lane)]));
                break;
            case Format::kInt4: weights[k] = read_int4(data + k / kGroup * kInt4Group, k % kGroup, lane); break;
        }
    }
}

}  // namespace llmfast
