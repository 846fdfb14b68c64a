#include "encode/documents.h"

#include <algorithm>

#include "encode/ordered_concatenation.h"
#include "system/parallel.h"

namespace llmfast {
namespace {

constexpr size_t kTask = 1 << 16;  // bytes of text that a thread takes at once

// A part of a document: long documents are cut at places where a piece certainly ends.
struct Stretch {
    std::string_view text;
    bool ends_document;
    size_t ids;  // how many it has
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

template <typename Id>
Buffer<Id> encode_documents(const Encoder& encoder, const std::vector<std::string_view>& documents,
                            std::optional<uint32_t> separator, size_t threads, int64_t* offsets) {
    std::vector<Stretch> stretches = stretches_of(documents, encoder.pattern());
    const std::vector<size_t> starts = tasks_of(stretches);
    const size_t tasks = starts.size() - 1, members = std::clamp<size_t>(tasks, 1, std::max<size_t>(threads, 1));
    size_t bytes = 0;
    for (const std::string_view document : documents) bytes += document.size() + 1;
    OrderedConcatenation<Id> all(tasks, members, Encoder::usual_ids(bytes) + kTask);
    run_parallel(tasks, members, [&](size_t task, size_t member) {
        IdBuffer& ids = all.ids(member);
        const size_t begin = ids.size();
        for (size_t i = starts[task]; i < starts[task + 1]; ++i) {
            const size_t before = ids.size();
            encoder.encode(stretches[i].text, ids);
            if (stretches[i].ends_document && separator) ids.push_back(*separator);
            stretches[i].ids = ids.size() - before;
        }
        all.finish(task, member, ids.size() - begin);
    });
    int64_t total = 0;
    offsets[0] = 0;
    for (const Stretch& stretch : stretches) {
        total += static_cast<int64_t>(stretch.ids);
        if (stretch.ends_document) *++offsets = total;
    }
    return all.take();
}

template Buffer<uint16_t> encode_documents(const Encoder&, const std::vector<std::string_view>&,
                                           std::optional<uint32_t>, size_t, int64_t*);
template Buffer<uint32_t> encode_documents(const Encoder&, const std::vector<std::string_view>&,
                                           std::optional<uint32_t>, size_t, int64_t*);

}  // namespace llmfast
