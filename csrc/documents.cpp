#include "documents.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "pages.h"
#include "parallel.h"

namespace llmfast {
namespace {

constexpr size_t kTask = 1 << 18;  // bytes of text that a thread takes at once

// A stretch of a document: long ones are cut where pieces certainly end.
struct Stretch {
    std::string_view text;
    bool ends_document;
    size_t ids;  // how many it has
};

// What one thread found, in cache lines of its own.
struct alignas(64) Found {
    IdBuffer ids;
};

// The ids of one task, among all those that a thread found.
struct Part {
    size_t member, begin, count;
};

std::vector<Stretch> stretches_of(const std::vector<std::string_view>& documents, Pattern pattern) {
    std::vector<Stretch> stretches;
    stretches.reserve(documents.size());
    for (std::string_view rest : documents) {
        while (rest.size() > 2 * kTask) {
            const size_t cut = certain_boundary(pattern, rest.data(), rest.size(), kTask);
            if (cut == rest.size()) break;
            stretches.push_back({rest.substr(0, cut), false, 0});
            rest.remove_prefix(cut);
        }
        stretches.push_back({rest, true, 0});
    }
    return stretches;
}

// Where each task starts among the stretches, and the end of the last.
std::vector<size_t> tasks_of(const std::vector<Stretch>& stretches) {
    std::vector<size_t> starts = {0};
    size_t bytes = 0;
    for (size_t i = 0; i < stretches.size(); ++i) {
        bytes += stretches[i].text.size();
        if (bytes < kTask && i + 1 < stretches.size()) continue;
        starts.push_back(i + 1);
        bytes = 0;
    }
    return starts;
}

template <typename Id>
void* gather(const std::vector<Part>& parts, const std::vector<Found>& found, size_t total, size_t threads) {
    Id* all = static_cast<Id*>(allocate(std::max<size_t>(total, 1) * sizeof(Id)));
    if (!all) throw std::bad_alloc();
    std::vector<size_t> starts(parts.size() + 1);
    for (size_t i = 0; i < parts.size(); ++i) starts[i + 1] = starts[i] + parts[i].count;
    run_parallel(parts.size(), threads, [&](size_t i, size_t) {
        std::copy_n(found[parts[i].member].ids.data() + parts[i].begin, parts[i].count, all + starts[i]);
    });
    return all;
}

// The ids that one thread found, which are all there are, where they are.
void* take(IdBuffer& found, bool narrow) {
    const size_t count = found.size();
    uint32_t* const wide = found.release();
    if (!narrow) return wide;
    uint16_t* const half = reinterpret_cast<uint16_t*>(wide);
    constexpr size_t kAtOnce = 64;  // by way of a few beside them, which vectors do
    for (size_t i = 0; i < count; i += kAtOnce) {
        uint16_t some[kAtOnce];
        const size_t size = std::min(kAtOnce, count - i);
        for (size_t j = 0; j < size; ++j) some[j] = static_cast<uint16_t>(wide[i + j]);
        std::memcpy(half + i, some, size * sizeof *half);
    }
    void* const cut = std::realloc(half, std::max<size_t>(count, 1) * sizeof(uint16_t));
    return cut ? cut : half;
}

}  // namespace

size_t encode_with_specials(const Encoder& encoder, const Specials& specials, const Specials::Enabled& enabled,
                            std::string_view text, IdBuffer& ids) {
    size_t start = 0, last = 0;
    while (true) {
        const auto [end, special] = specials.find(text, start, enabled);
        if (end > start) last = encoder.encode(text.substr(start, end - start), ids);
        if (!special) return last;
        ids.push_back(special->id);
        last = 0;
        start = end + special->bytes.size();
    }
}

void* encode_documents(const Encoder& encoder, const std::vector<std::string_view>& documents,
                       std::optional<uint32_t> separator, size_t threads, bool narrow, int64_t* offsets) {
    std::vector<Stretch> stretches = stretches_of(documents, encoder.pattern());
    const std::vector<size_t> starts = tasks_of(stretches);
    std::vector<Part> parts(starts.size() - 1);
    const size_t members = std::clamp<size_t>(parts.size(), 1, std::max<size_t>(threads, 1));
    std::vector<Found> found(members);
    size_t bytes = 0;
    for (const std::string_view document : documents) bytes += document.size() + 1;
    run_parallel(parts.size(), members, [&](size_t task, size_t member) {
        IdBuffer& ids = found[member].ids;
        if (ids.size() == 0) ids.reserve(Encoder::usual_ids(bytes) / members + kTask);
        const size_t begin = ids.size();
        for (size_t i = starts[task]; i < starts[task + 1]; ++i) {
            const size_t before = ids.size();
            encoder.encode(stretches[i].text, ids);
            if (stretches[i].ends_document && separator) ids.push_back(*separator);
            stretches[i].ids = ids.size() - before;
        }
        parts[task] = {member, begin, ids.size() - begin};
    });
    int64_t total = 0;
    offsets[0] = 0;
    for (const Stretch& stretch : stretches) {
        total += static_cast<int64_t>(stretch.ids);
        if (stretch.ends_document) *++offsets = total;
    }
    if (members == 1) return take(found[0].ids, narrow);
    const size_t count = static_cast<size_t>(total);
    return narrow ? gather<uint16_t>(parts, found, count, threads) : gather<uint32_t>(parts, found, count, threads);
}

}  // namespace llmfast
