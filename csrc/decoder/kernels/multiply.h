// Products of weight panels and the vectors of tokens. Included into the namespace of an instruction set.
//
// A tile is P panels by T tokens, whose sums stay in registers: each weight that is loaded serves T tokens, and each
// number of a token P panels. Every output is one chain of additions over the columns in their order, so it does not
// depend on the tile that computes it.

constexpr size_t kTileTokens = 6;  // 12 registers of AVX2 hold the sums, two the weights, one a token's number
constexpr size_t kIntegerTokens = 4;
constexpr size_t kColumnsInCache = 384;  // of one panel and many tokens: about half of a core's caches

template <size_t P, size_t T, typename Number>
inline void multiply_tile(const Number* const* panels, size_t panel_step, const float* x, size_t x_step, size_t columns,
                          float* y, size_t y_step, bool resumes) {
    Lanes sums[T][P];
    const Number* weights[P];
    LLMFAST_UNROLL
    for (size_t p = 0; p < P; ++p) weights[p] = panels[p];
    LLMFAST_UNROLL
    for (size_t t = 0; t < T; ++t) LLMFAST_UNROLL
    for (size_t p = 0; p < P; ++p) sums[t][p] = resumes ? load(y + t * y_step + p * kPanel) : broadcast(0);
    for (size_t k = 0; k < columns; ++k) {
        Lanes row[P];
        LLMFAST_UNROLL
        for (size_t p = 0; p < P; ++p) row[p] = load(weights[p] + k * panel_step);
        LLMFAST_UNROLL
        for (size_t t = 0; t < T; ++t) {
            const Lanes number = broadcast(x[t * x_step + k]);
            LLMFAST_UNROLL
            for (size_t p = 0; p < P; ++p) sums[t][p] = multiply_add(row[p], number, sums[t][p]);
        }
    }
    LLMFAST_UNROLL
    for (size_t t = 0; t < T; ++t) LLMFAST_UNROLL
    for (size_t p = 0; p < P; ++p) store(y + t * y_step + p * kPanel, sums[t][p]);
}

// Any number of panels, in tiles of P and then of one.
template <size_t P, size_t T, typename Number>
inline void multiply_panels(const Number* const* panels, size_t count, size_t panel_step, const float* x, size_t x_step,
                            size_t columns, float* y, size_t y_step, bool resumes) {
    size_t at = 0;
    for (; at + P <= count; at += P)
        multiply_tile<P, T>(panels + at, panel_step, x, x_step, columns, y + at * kPanel, y_step, resumes);
    for (; at < count; ++at)
        multiply_tile<1, T>(panels + at, panel_step, x, x_step, columns, y + at * kPanel, y_step, resumes);
}

// The same for up to kTileTokens tokens. Few tokens need several panels at once, for enough independent sums.
template <typename Number>
void multiply_tokens(size_t tokens, const Number* const* panels, size_t count, size_t panel_step, const float* x,
                     size_t x_step, size_t columns, float* y, size_t y_step, bool resumes) {
    const auto with = [&]<size_t P, size_t T>() {
        multiply_panels<P, T>(panels, count, panel_step, x, x_step, columns, y, y_step, resumes);
    };
    switch (tokens) {
        case 1: return with.template operator()<4, 1>();
        case 2: return with.template operator()<2, 2>();
        case 3: return with.template operator()<2, 3>();
        case 4: return with.template operator()<1, 4>();
        case 5: return with.template operator()<1, 5>();
        default: return with.template operator()<1, 6>();
    }
}

// Calls part(begin, count) for parts of at most `most` tokens, of nearly equal size.
template <typename Part>
inline void in_parts(size_t tokens, size_t most, Part part) {
    const size_t parts = (tokens + most - 1) / most;
    for (size_t i = 0; i < parts; ++i) {
        const size_t begin = tokens * i / parts;
        part(begin, tokens * (i + 1) / parts - begin);
    }
}

template <typename Number>
void multiply_floats(const Matrix& weights, const Input& x, size_t tokens, size_t first, size_t last, float* y,
                     size_t y_step) {
    const auto numbers = [&](size_t panel) { return reinterpret_cast<const Number*>(weights.panel(panel)); };
    const size_t columns = weights.columns();
    if (tokens <= kTileTokens) {
        constexpr size_t kTogether = 4;
        for (size_t panel = first; panel < last; panel += kTogether) {
            const Number* panels[kTogether];
            const size_t count = last - panel < kTogether ? last - panel : kTogether;
            for (size_t p = 0; p < count; ++p) panels[p] = numbers(panel + p);
            multiply_tokens(tokens, panels, count, kPanel, x.values, x.step, columns, y + panel * kPanel, y_step,
                            false);
        }
        return;
    }
    // Blocks of columns, so that those of one panel stay in the first cache and those of all tokens in the second.
    for (size_t k = 0; k < columns; k += kColumnsInCache) {
        const size_t width = columns - k < kColumnsInCache ? columns - k : kColumnsInCache;
        for (size_t panel = first; panel < last; ++panel) {
            const Number* const part = numbers(panel) + k * kPanel;
            in_parts(tokens, kTileTokens, [&](size_t token, size_t count) {
                multiply_tokens(count, &part, 1, kPanel, x.values + token * x.step + k, x.step, width,
                                y + token * y_step + panel * kPanel, y_step, k > 0);
            });
        }
    }
}

template <size_t P, size_t T>
inline void multiply_int8_tile(const Matrix& weights, const Input& x, size_t token, size_t panel, float* y,
                               size_t y_step) {
    const size_t groups = x.groups;
    const int8_t* data[P];
    LLMFAST_UNROLL
    for (size_t p = 0; p < P; ++p) data[p] = reinterpret_cast<const int8_t*>(weights.panel(panel + p));
    Lanes sums[T][P];
    LLMFAST_UNROLL
    for (size_t t = 0; t < T; ++t) LLMFAST_UNROLL
    for (size_t p = 0; p < P; ++p) sums[t][p] = broadcast(0);
    for (size_t group = 0; group < groups; ++group) {
        const int8_t* const bytes = x.bytes + (token * groups + group) * kGroup;
        Counts counts[T][P];
        LLMFAST_UNROLL
        for (size_t t = 0; t < T; ++t) LLMFAST_UNROLL
        for (size_t p = 0; p < P; ++p) counts[t][p] = no_counts();
        LLMFAST_UNROLL
        for (size_t k = 0; k < kGroup; k += 4) LLMFAST_UNROLL
        for (size_t p = 0; p < P; ++p) LLMFAST_UNROLL
        for (size_t t = 0; t < T; ++t)
            counts[t][p] =
                add_products(counts[t][p], data[p] + (group * kGroup + k) * kPanel, bytes + t * groups * kGroup + k);
        LLMFAST_UNROLL
        for (size_t t = 0; t < T; ++t) {
            const Lanes scale = broadcast(x.scales[(token + t) * groups + group]);
            LLMFAST_UNROLL
            for (size_t p = 0; p < P; ++p) sums[t][p] = multiply_add(to_lanes(counts[t][p]), scale, sums[t][p]);
        }
    }
    LLMFAST_UNROLL
    for (size_t t = 0; t < T; ++t) LLMFAST_UNROLL
    for (size_t p = 0; p < P; ++p)
        store(y + (token + t) * y_step + (panel + p) * kPanel, sums[t][p] * load(weights.scales(panel + p)));
}

template <size_t P, size_t T>
inline void multiply_int4_tile(const Matrix& weights, const Input& x, size_t token, size_t panel, float* y,
                               size_t y_step) {
    const size_t groups = x.groups;
    const uint8_t* data[P];
    LLMFAST_UNROLL
    for (size_t p = 0; p < P; ++p) data[p] = weights.panel(panel + p);
    Lanes sums[T][P];
    LLMFAST_UNROLL
    for (size_t t = 0; t < T; ++t) LLMFAST_UNROLL
    for (size_t p = 0; p < P; ++p) sums[t][p] = broadcast(0);
    for (size_t group = 0; group < groups; ++group) {
        const int8_t* const bytes = x.bytes + (token * groups + group) * kGroup;
        GroupCounts counts[T][P];
        LLMFAST_UNROLL
        for (size_t t = 0; t < T; ++t) LLMFAST_UNROLL
        for (size_t p = 0; p < P; ++p) counts[t][p] = no_group_counts();
        LLMFAST_UNROLL
        for (size_t k = 0; k < kGroup; k += 8) LLMFAST_UNROLL
        for (size_t p = 0; p < P; ++p) {
            const Nibbles nibbles = load_nibbles(data[p] + group * kInt4Group + k * (kPanel / 2));
            LLMFAST_UNROLL
            for (size_t t = 0; t < T; ++t)
                counts[t][p] = add_products(counts[t][p], nibbles, bytes + t * groups * kGroup + k);
        }
        Lanes weight_scales[P];
        LLMFAST_UNROLL
        for (size_t p = 0; p < P; ++p)
            weight_scales[p] = load(reinterpret_cast<const uint16_t*>(data[p] + group * kInt4Group + kInt4Nibbles));
        LLMFAST_UNROLL
        for (size_t t = 0; t < T; ++t) {
            const size_t at = (token + t) * groups + group;
            const Lanes scale = broadcast(x.scales[at]);
            LLMFAST_UNROLL
            for (size_t p = 0; p < P; ++p) {
                const Lanes products = to_lanes(minus(counts[t][p], 8 * x.sums[at]));  // weights are stored plus 8
                sums[t][p] = multiply_add(products * weight_scales[p], scale, sums[t][p]);
            }
        }
    }
    LLMFAST_UNROLL
    for (size_t t = 0; t < T; ++t) LLMFAST_UNROLL
    for (size_t p = 0; p < P; ++p) store(y + (token + t) * y_step + (panel + p) * kPanel, sums[t][p]);
}

template <Format format, size_t P, size_t T>
inline void multiply_integer_tile(const Matrix& weights, const Input& x, size_t token, size_t panel, float* y,
                                  size_t y_step) {
    if constexpr (format == Format::kInt8) {
        multiply_int8_tile<P, T>(weights, x, token, panel, y, y_step);
    } else {
        multiply_int4_tile<P, T>(weights, x, token, panel, y, y_step);
    }
}

// One panel after another, so that its weights stay in the first cache while the tokens pass.
template <Format format>
void multiply_integers(const Matrix& weights, const Input& x, size_t tokens, size_t first, size_t last, float* y,
                       size_t y_step) {
    size_t panel = first;
    if (tokens == 1) {
        for (; panel + 2 <= last; panel += 2) multiply_integer_tile<format, 2, 1>(weights, x, 0, panel, y, y_step);
    }
    for (; panel < last; ++panel) {
        in_parts(tokens, kIntegerTokens, [&](size_t token, size_t count) {
            switch (count) {
                case 1: return multiply_integer_tile<format, 1, 1>(weights, x, token, panel, y, y_step);
                case 2: return multiply_integer_tile<format, 1, 2>(weights, x, token, panel, y, y_step);
                case 3: return multiply_integer_tile<format, 1, 3>(weights, x, token, panel, y, y_step);
                default: return multiply_integer_tile<format, 1, 4>(weights, x, token, panel, y, y_step);
            }
        });
    }
}

void multiply(const Matrix& weights, const Input& x, size_t tokens, size_t first, size_t last, const float* bias,
              float* y, size_t y_step) {
    switch (weights.format()) {
        case Format::kFloat32: multiply_floats<float>(weights, x, tokens, first, last, y, y_step); break;
        case Format::kBfloat16: multiply_floats<uint16_t>(weights, x, tokens, first, last, y, y_step); break;
        case Format::kInt8: multiply_integers<Format::kInt8>(weights, x, tokens, first, last, y, y_step); break;
        case Format::kInt4: multiply_integers<Format::kInt4>(weights, x, tokens, first, last, y, y_step); break;
    }
    if (!bias) return;
    for (size_t token = 0; token < tokens; ++token) {
        for (size_t row = first * kPanel; row < last * kPanel; row += kPanel) {
            float* const to = y + token * y_step + row;
            store(to, load(to) + load(bias + row));
        }
    }
}
