// Norms, activations and the rounding of vectors to bytes. Included into the namespace of an instruction set.

// Up to 16 numbers; the other lanes are zero.
inline Lanes load_part(const float* from, size_t count) {
    if (count >= kPanel) return load(from);
    float numbers[kPanel] = {};
    for (size_t i = 0; i < count; ++i) numbers[i] = from[i];
    return load(numbers);
}

inline void store_part(float* to, const Lanes& a, size_t count) {
    if (count >= kPanel) return store(to, a);
    float numbers[kPanel];
    store(numbers, a);
    for (size_t i = 0; i < count; ++i) to[i] = numbers[i];
}

// Calls each(at, count) for 16 numbers at a time; `count` is what is left at `at`.
template <typename Each>
inline void in_lanes(size_t width, Each each) {
    for (size_t at = 0; at < width; at += kPanel) each(at, width - at);
}

// e^x to 2 units in the last place; 0 below -87, where the result would be no normal number. NaN stays NaN.
inline Lanes exponential(const Lanes& x) {
    const Lanes lowest = broadcast(-87.0f), shift = broadcast(12582912.0f);
    const Lanes inside = minimum(broadcast(88.0f), maximum(lowest, x));
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, of which the first has few digits.
    const Lanes shifted = multiply_add(inside, broadcast(1.44269504f), shift);
    const Lanes n = shifted - shift;
    Lanes r = multiply_add(n, broadcast(-0.693359375f), inside);
    r = multiply_add(n, broadcast(2.12194440e-4f), r);
    Lanes p = broadcast(1.9875691500e-4f);
    p = multiply_add(p, r, broadcast(1.3981999507e-3f));
    p = multiply_add(p, r, broadcast(8.3334519073e-3f));
    p = multiply_add(p, r, broadcast(4.1665795894e-2f));
    p = multiply_add(p, r, broadcast(1.6666665459e-1f));
    p = multiply_add(p, r, broadcast(5.0000001201e-1f));
    const Lanes power = multiply_add(p, r * r, r) + broadcast(1);
    return where_less(x, lowest, broadcast(0), power * power_of_two(shifted));
}

inline Lanes sigmoid_times(const Lanes& x, const Lanes& z) {  // x * sigmoid(z)
    return x / (broadcast(1) + exponential(broadcast(0) - z));
}

// x * (1 + tanh(u)) / 2 = x * sigmoid(2u).
inline Lanes gelu_tanh(const Lanes& x) {
    const Lanes cubic = multiply_add(x * x, broadcast(0.044715f), broadcast(1));
    return sigmoid_times(x, broadcast(1.5957691216f) * x * cubic);
}

// x * erfc(-x / sqrt 2) / 2. erfc by the Chebyshev fit of Numerical Recipes (section 6.2), off by 1.2e-7 of its value.
inline Lanes gelu(const Lanes& x) {
    const Lanes z = magnitude(x) * broadcast(0.70710678118f);
    const Lanes t = broadcast(1) / multiply_add(z, broadcast(0.5f), broadcast(1));
    Lanes p = broadcast(0.17087277f);
    for (const float coefficient : {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f,
                                    0.37409196f, 1.00002368f, -1.26551223f})
        p = multiply_add(p, t, broadcast(coefficient));
    const Lanes tail = t * exponential(p - z * z);  // erfc(|x| / sqrt 2)
    const Lanes twice = where_less(x, broadcast(0), tail, broadcast(2) - tail);
    return broadcast(0.5f) * x * twice;
}

template <typename Function>
inline void map(const float* from, size_t width, float* to, Function function) {
    in_lanes(width,
             [&](size_t at, size_t count) { store_part(to + at, function(load_part(from + at, count)), count); });
}

template <typename Function>
inline void map_gated(const float* from, const float* up, size_t width, float* to, Function function) {
    in_lanes(width, [&](size_t at, size_t count) {
        store_part(to + at, function(load_part(from + at, count)) * load_part(up + at, count), count);
    });
}

void activate(Activation activation, const float* from, const float* up, size_t width, float* to) {
    const auto silu = [](const Lanes& x) { return sigmoid_times(x, x); };
    switch (activation) {
        case Activation::kGelu: return map(from, width, to, gelu);
        case Activation::kGeluTanh: return map(from, width, to, gelu_tanh);
        case Activation::kSwiglu: return map_gated(from, up, width, to, silu);
        case Activation::kGeglu: return map_gated(from, up, width, to, gelu);
        case Activation::kGegluTanh: return map_gated(from, up, width, to, gelu_tanh);
    }
}

void normalize(const float* from, size_t width, const float* weight, const float* bias, float eps, float* to) {
    const float inverse_width = 1 / static_cast<float>(width);
    float mean = 0;
    if (bias) {
        Lanes total = broadcast(0);
        in_lanes(width, [&](size_t at, size_t count) { total = total + load_part(from + at, count); });
        mean = sum(total) * inverse_width;
    }
    const Lanes center = broadcast(mean);
    Lanes squares = broadcast(0);
    in_lanes(width, [&](size_t at, size_t count) {
        const Lanes x = between(0, count, load_part(from + at, count) - center, broadcast(0));
        squares = multiply_add(x, x, squares);
    });
    const Lanes factor = broadcast(1 / std::sqrt(sum(squares) * inverse_width + eps));
    in_lanes(width, [&](size_t at, size_t count) {
        const Lanes x = (load_part(from + at, count) - center) * factor;
        const Lanes scaled = x * load_part(weight + at, count);
        store_part(to + at, bias ? scaled + load_part(bias + at, count) : scaled, count);
    });
}

void add(float* a, const float* b, size_t width) {
    in_lanes(width, [&](size_t at, size_t count) {
        store_part(a + at, load_part(a + at, count) + load_part(b + at, count), count);
    });
}

void quantize(const float* from, size_t width, int8_t* bytes, float* scales, int32_t* sums) {
    for (size_t begin = 0; begin < width; begin += kGroup, bytes += kGroup) {
        const size_t count = width - begin < kGroup ? width - begin : kGroup;
        const Lanes low = load_part(from + begin, count);
        const Lanes high = count > kPanel ? load_part(from + begin + kPanel, count - kPanel) : broadcast(0);
        const float most = largest(maximum(magnitude(low), magnitude(high)));
        const float odd = sum((low + high) * broadcast(0));  // NaN if a number is not finite
        const bool is_finite = odd == 0 && most < std::numeric_limits<float>::infinity();
        const float inverse = is_finite && most > 1e-30f ? 127 / most : 0;
        *scales++ = is_finite ? most * (1 / 127.0f) : std::numeric_limits<float>::quiet_NaN();
        if (inverse > 0) {
            store_rounded(bytes, low * broadcast(inverse));
            store_rounded(bytes + kPanel, high * broadcast(inverse));
        } else {
            for (size_t i = 0; i < kGroup; ++i) bytes[i] = 0;
        }
        int32_t total = 0;
        for (size_t i = 0; i < kGroup; ++i) total += bytes[i];
        *sums++ = total;
    }
}
