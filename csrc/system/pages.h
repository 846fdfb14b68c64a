// Large zeroed arrays, in huge pages where the system has them: tables that are looked up all over.
#pragma once

#include <cstddef>

namespace llmfast {

// Memory that std::free takes back, in huge pages where it is large and the system has them: a page is then touched for
// the first time 500 times less often. nullptr where there is none.
void* allocate(size_t bytes);

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
