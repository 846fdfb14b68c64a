// Concatenates the results of several threads in the order of their tasks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "system/buffer.h"
#include "system/interrupt.h"

namespace llmfast {

// The ids of tasks that are started in order. A thread moves its ids to their place as soon as all earlier tasks are
// done, which is soon: the ids are then still in its cache, and little memory is needed besides the array.
template <typename Id>
class OrderedConcatenation {
  public:
    // `room` is the number of ids for which memory is reserved; there may be more.
    OrderedConcatenation(size_t tasks, size_t members, size_t room)
        : places_(tasks + 1, kUnknown), found_(members), room_(room) {
        places_[0] = 0;
        all_.reserve(room);
    }

    // Where the thread `member` appends the ids of its next task.
    IdBuffer& ids(size_t member) { return found_[member].ids; }

    // Declares the last `count` ids of `member` to be those of `task`.
    void finish(size_t task, size_t member, size_t count) {
        Found& found = found_[member];
        found.parts.push_back({task, found.ids.size() - count, count});
        move(found, know(task, count));
    }

    // The array, when all tasks are done.
    Buffer<Id> take() {
        const size_t total = places_.back();
        all_.commit(std::min(room_, total));
        all_.reserve(total);
        room_ = std::max(room_, total);
        for (Found& found : found_) move(found, places_.size() - 1);
        all_.truncate(0);
        all_.commit(total);
        return std::move(all_);
    }

  private:
    static constexpr size_t kUnknown = SIZE_MAX;
    struct Part {
        size_t task, begin, count;
    };
    struct alignas(64) Found {  // the ids of one thread that are not at their place yet
        IdBuffer ids;
        std::vector<Part> parts;
    };

    // How many tasks have a place, now that `task` is done.
    size_t know(size_t task, size_t count) {
        const std::lock_guard lock(guard_);
        places_[task + 1] = count;
        for (; placed_ + 1 < places_.size() && places_[placed_ + 1] != kUnknown; ++placed_) {
            places_[placed_ + 1] += places_[placed_];
        }
        return placed_;
    }

    void move(Found& found, size_t placed) {
        auto part = found.parts.begin();
        for (; part != found.parts.end() && part->task < placed && places_[part->task + 1] <= room_; ++part) {
            check_interrupt();
            std::copy_n(found.ids.data() + part->begin, part->count, all_.data() + places_[part->task]);
        }
        found.parts.erase(found.parts.begin(), part);
        if (found.parts.empty()) found.ids.clear();
    }

    std::vector<size_t> places_;  // where each task with a place begins; after those, how many ids a task has
    size_t placed_ = 0;           // tasks
    std::mutex guard_;
    std::vector<Found> found_;
    Buffer<Id> all_;
    size_t room_;
};

}  // namespace llmfast
