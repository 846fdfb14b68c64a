// Sixteen numbers side by side, in portable C++: the definition of what the vector instructions of lanes_avx2.h
// compute, to the bit. Included into a namespace of its own.

struct Lanes {
    float at[16];
};

template <typename Each>
inline Lanes each_lane(Each each) {
    Lanes result;
    for (size_t i = 0; i < 16; ++i) result.at[i] = each(i);
    return result;
}

inline Lanes broadcast(float value) {
    return each_lane([&](size_t) { return value; });
}
inline Lanes load(const float* from) {
    return each_lane([&](size_t i) { return from[i]; });
}
// Sixteen bfloat16 numbers in the order of matrix.h.
inline Lanes load(const uint16_t* from) {
    return each_lane([&](size_t i) { return from_bfloat16(from[bfloat16_place(i)]); });
}
inline void store(float* to, const Lanes& a) {
    for (size_t i = 0; i < 16; ++i) to[i] = a.at[i];
}
inline void store(uint16_t* to, const Lanes& a) {
    for (size_t i = 0; i < 16; ++i) to[bfloat16_place(i)] = to_bfloat16(a.at[i]);
}

// a * b + c, rounded once.
inline Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& c) {
    return each_lane([&](size_t i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
}
inline Lanes operator+(const Lanes& a, const Lanes& b) {
    return each_lane([&](size_t i) { return a.at[i] + b.at[i]; });
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
    return each_lane([&](size_t i) { return a.at[i] - b.at[i]; });
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
    return each_lane([&](size_t i) { return a.at[i] * b.at[i]; });
}
inline Lanes operator/(const Lanes& a, const Lanes& b) {
    return each_lane([&](size_t i) { return a.at[i] / b.at[i]; });
}
// The second where either is NaN.
inline Lanes maximum(const Lanes& a, const Lanes& b) {
    return each_lane([&](size_t i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
}
inline Lanes minimum(const Lanes& a, const Lanes& b) {
    return each_lane([&](size_t i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
}
inline Lanes magnitude(const Lanes& a) {
    return each_lane([&](size_t i) { return std::abs(a.at[i]); });
}
// `a` where `x` < `limit`, else `b`.
inline Lanes where_less(const Lanes& x, const Lanes& limit, const Lanes& a, const Lanes& b) {
    return each_lane([&](size_t i) { return x.at[i] < limit.at[i] ? a.at[i] : b.at[i]; });
}
// `a` in lanes from `begin` to `end`, else `b`.
inline Lanes between(size_t begin, size_t end, const Lanes& a, const Lanes& b) {
    return each_lane([&](size_t i) { return begin <= i && i < end ? a.at[i] : b.at[i]; });
}
// 2^n for the integer n that the last bits of n + 1.5 * 2^23 are, for n from -126 to 127.
inline Lanes power_of_two(const Lanes& shifted) {
    return each_lane(
        [&](size_t i) { return std::bit_cast<float>((std::bit_cast<uint32_t>(shifted.at[i]) + 127) << 23); });
}
// The sum of all lanes, in a fixed order.
inline float sum(const Lanes& a) {
    float eight[8], four[4];
    for (size_t i = 0; i < 8; ++i) eight[i] = a.at[i] + a.at[i + 8];
    for (size_t i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}
inline float largest(const Lanes& a) {
    float most = a.at[0];
    for (size_t i = 1; i < 16; ++i) most = a.at[i] > most ? a.at[i] : most;
    return most;
}

// Sixteen 32-bit integers.
struct Counts {
    int32_t at[16];
};

inline Counts no_counts() { return {}; }
inline Lanes to_lanes(const Counts& counts) {
    return each_lane([&](size_t i) { return static_cast<float>(counts.at[i]); });
}
// Adds to lane i the sum of weights[4i + j] * x[j] over j < 4. No number is -128.
inline Counts add_products(Counts counts, const int8_t* weights, const int8_t* x) {
    for (size_t i = 0; i < 16; ++i)
        for (size_t j = 0; j < 4; ++j) counts.at[i] += weights[4 * i + j] * x[j];
    return counts;
}
// Numbers to the nearest integers, ties to even, as bytes; they are from -127 to 127.
inline void store_rounded(int8_t* to, const Lanes& a) {
    for (size_t i = 0; i < 16; ++i) to[i] = static_cast<int8_t>((a.at[i] + 12582912.0f) - 12582912.0f);
}

// Sums of products of 4-bit weights, of one group of 32 columns.
struct GroupCounts {
    Counts counts;
};

// 64 bytes, with two weights from 0 to 15 in each.
struct Nibbles {
    const uint8_t* at;
};

inline GroupCounts no_group_counts() { return {}; }
inline Nibbles load_nibbles(const uint8_t* from) { return {from}; }
// Adds to lane i the sum over j < 4 of low[4i + j] * x[j] + high[4i + j] * x[4 + j].
inline GroupCounts add_products(GroupCounts sums, const Nibbles& weights, const int8_t* x) {
    for (size_t i = 0; i < 16; ++i) {
        for (size_t j = 0; j < 4; ++j) {
            const uint8_t byte = weights.at[4 * i + j];
            sums.counts.at[i] += (byte & 15) * x[j] + (byte >> 4) * x[4 + j];
        }
    }
    return sums;
}
inline Counts minus(const GroupCounts& sums, int32_t offset) {
    Counts result = sums.counts;
    for (size_t i = 0; i < 16; ++i) result.at[i] -= offset;
    return result;
}
inline void prefetch(const void*) {}
