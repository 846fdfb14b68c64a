// Softmax attention of a few queries over the cache. Included into the namespace of an instruction set.
//
// Keys lie in panels of 16 positions, as the weights of a matrix whose rows are the positions, so that scores are a
// product like any other; values lie position after position, as the weights of a matrix whose columns they are.

// Scores of the positions from `begin` to `end` become probabilities times the sum that is returned; all others 0.
inline float exponentials(float* scores, size_t first, size_t begin, size_t end, size_t stop, float scale) {
    const Lanes lowest = broadcast(-std::numeric_limits<float>::infinity()), factor = broadcast(scale);
    const auto seen = [&](size_t at, const Lanes& inside, const Lanes& outside) {
        return between(begin > at ? begin - at : 0, end > at ? end - at : 0, inside, outside);
    };
    Lanes most = lowest;
    for (size_t at = first; at < stop; at += kPanel)
        most = maximum(most, seen(at, load(scores + at - first) * factor, lowest));
    const Lanes highest = broadcast(largest(most));
    Lanes total = broadcast(0);
    for (size_t at = first; at < stop; at += kPanel) {
        const Lanes score = multiply_add(load(scores + at - first), factor, broadcast(0) - highest);
        const Lanes part = seen(at, exponential(score), broadcast(0));
        store(scores + at - first, part);
        total = total + part;
    }
    return sum(total);
}

template <typename Number>
void attend(const Heads<Number>& heads) {
    const size_t end = heads.position + heads.count;
    const size_t unseen = heads.position + 1 > heads.window ? heads.position + 1 - heads.window : 0;
    const size_t first = unseen / kPanel * kPanel, stop = round_up(end, kPanel), step = stop - first;
    multiply_tokens(heads.count, heads.keys + first / kPanel, step / kPanel, kPanel, heads.queries, heads.query_step,
                    heads.head_width, heads.scores, step, false);
    float totals[kQueries];
    for (size_t query = 0; query < heads.count; ++query) {
        const size_t last = heads.position + query + 1, begin = last > heads.window ? last - heads.window : 0;
        totals[query] = exponentials(heads.scores + query * step, first, begin, last, stop, heads.scale);
    }
    const size_t parts = heads.value_step / kPanel;
    for (size_t at = first; at < end; at += kPanel) {
        const Number* panels[16];
        for (size_t p = 0; p < parts; ++p) panels[p] = heads.values[at / kPanel] + p * kPanel;
        const size_t positions = end - at < kPanel ? end - at : kPanel;
        multiply_tokens(heads.count, panels, parts, heads.value_step, heads.scores + at - first, step, positions,
                        heads.sums, heads.value_step, at > first);
    }
    for (size_t query = 0; query < heads.count; ++query) {
        const Lanes factor = broadcast(1 / totals[query]);
        map(heads.sums + query * heads.value_step, heads.head_width, heads.mixed + query * heads.mixed_step,
            [&](const Lanes& x) { return x * factor; });
    }
}
