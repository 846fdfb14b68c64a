// Large zeroed arrays, in huge pages where the system has them: tables that are looked up all over.
#pragma once

#include <cstddef>

namespace llmfast {

class Pages {
  public:
    explicit Pages(size_t bytes);  // throws std::bad_alloc
    ~Pages();
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;

    void* data() const { return data_; }

  private:
    void* data_;
    size_t bytes_;
};

}  // namespace llmfast
