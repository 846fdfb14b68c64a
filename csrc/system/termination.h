// Checks in debug builds that loops end.
#pragma once

#include <cassert>
#include <cstddef>

namespace llmfast {

// A quantity that becomes smaller with every iteration of a loop: a loop that has one ends. Each loop over a caller's
// text whose end is not evident from its header names such a measure. Debug builds check it; in release builds, which
// define NDEBUG, the class is empty.
class Decreasing {
#if !defined(NDEBUG)
  public:
    explicit Decreasing(size_t initial) : last_(initial) {}
    // Call it once per iteration, with a smaller value each time.
    void require(size_t measure) {
        assert(measure < last_);
        last_ = measure;
    }

  private:
    size_t last_;
#else
  public:
    explicit Decreasing(size_t) {}
    void require(size_t) {}
#endif
};

}  // namespace llmfast
