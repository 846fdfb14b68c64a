// Sixteen numbers side by side, in two registers of AVX2; what each function computes is said in lanes_portable.h.
// Included into a namespace of its own.

struct Lanes {
    __m256 low, high;
};

inline Lanes broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline Lanes load(const uint16_t* from) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), _mm256_castsi256_ps(_mm256_and_si256(pairs, upper))};
}
inline void store(float* to, const Lanes& a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}

// To bfloat16, in the upper half of each 32 bits.
inline __m256i upper_bfloat16(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i nearest = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_blendv_epi8(nearest, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
inline void store(uint16_t* to, const Lanes& a) {
    const __m256i lower = _mm256_srli_epi32(upper_bfloat16(a.low), 16);
    const __m256i pairs = _mm256_blend_epi16(lower, upper_bfloat16(a.high), 0xAA);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), pairs);
}

inline Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes operator+(const Lanes& a, const Lanes& b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes operator/(const Lanes& a, const Lanes& b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Lanes maximum(const Lanes& a, const Lanes& b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Lanes minimum(const Lanes& a, const Lanes& b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Lanes magnitude(const Lanes& a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline Lanes where_less(const Lanes& x, const Lanes& limit, const Lanes& a, const Lanes& b) {
    return {_mm256_blendv_ps(b.low, a.low, _mm256_cmp_ps(x.low, limit.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(b.high, a.high, _mm256_cmp_ps(x.high, limit.high, _CMP_LT_OQ))};
}
inline Lanes between(size_t begin, size_t end, const Lanes& a, const Lanes& b) {
    const __m256i first = _mm256_set1_epi32(static_cast<int>(begin) - 1),
                  last = _mm256_set1_epi32(static_cast<int>(end));
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                  high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
    const auto inside = [&](__m256i at) {
        return _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(at, first), _mm256_cmpgt_epi32(last, at)));
    };
    return {_mm256_blendv_ps(b.low, a.low, inside(low)), _mm256_blendv_ps(b.high, a.high, inside(high))};
}
inline __m256 power_of_two(__m256 shifted) {
    const __m256i exponent = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline Lanes power_of_two(const Lanes& shifted) { return {power_of_two(shifted.low), power_of_two(shifted.high)}; }
inline float sum(const Lanes& a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(const Lanes& a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

struct Counts {
    __m256i low, high;
};

inline Counts no_counts() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Lanes to_lanes(const Counts& counts) {
    return {_mm256_cvtepi32_ps(counts.low), _mm256_cvtepi32_ps(counts.high)};
}

inline __m256i load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline __m256i broadcast_four(const int8_t* x) {
    int four;
    __builtin_memcpy(&four, x, sizeof(four));
    return _mm256_set1_epi32(four);
}
// The instruction multiplies unsigned by signed bytes: the sign of the weight goes to x. Sums of two products fit into
// 16 bits, since 2 * 127 * 127 < 2^15.
inline __m256i products_of_four(__m256i weights, __m256i x) {
    const __m256i twos = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    return _mm256_madd_epi16(twos, _mm256_set1_epi16(1));
}
inline Counts add_products(const Counts& counts, const int8_t* weights, const int8_t* x) {
    const __m256i four = broadcast_four(x);
    return {_mm256_add_epi32(counts.low, products_of_four(load_bytes(weights), four)),
            _mm256_add_epi32(counts.high, products_of_four(load_bytes(weights + 32), four))};
}
inline void store_rounded(int8_t* to, const Lanes& a) {
    // Packing works within halves of 128 bits; the permutation brings the bytes in order.
    const __m256i shorts = _mm256_packs_epi32(_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high));
    const __m256i ordered = _mm256_permute4x64_epi64(shorts, 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}

// In pairs of 16 bits, which hold the sums of a whole group: 16 products of at most 15 * 127 each.
struct GroupCounts {
    __m256i low, high;
};

struct Nibbles {
    __m256i low, high;
};

inline GroupCounts no_group_counts() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Nibbles load_nibbles(const uint8_t* from) { return {load_bytes(from), load_bytes(from + 32)}; }
inline __m256i add_nibble_products(__m256i sums, __m256i bytes, __m256i x_low, __m256i x_high) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(bytes, mask), high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(low, x_low));
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16(high, x_high));
}
inline GroupCounts add_products(const GroupCounts& sums, const Nibbles& weights, const int8_t* x) {
    const __m256i x_low = broadcast_four(x), x_high = broadcast_four(x + 4);
    return {add_nibble_products(sums.low, weights.low, x_low, x_high),
            add_nibble_products(sums.high, weights.high, x_low, x_high)};
}
inline Counts minus(const GroupCounts& sums, int32_t offset) {
    const __m256i ones = _mm256_set1_epi16(1), subtracted = _mm256_set1_epi32(offset);
    return {_mm256_sub_epi32(_mm256_madd_epi16(sums.low, ones), subtracted),
            _mm256_sub_epi32(_mm256_madd_epi16(sums.high, ones), subtracted)};
}
inline void prefetch(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0); }
