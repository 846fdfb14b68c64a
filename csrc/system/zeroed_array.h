// Arrays of zeros that may be large: the system zeroes a page when it is first touched, so that making one takes no
// time.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

namespace llmfast {

template <typename T>
class ZeroedArray {
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    explicit ZeroedArray(size_t size) : data_(static_cast<T*>(std::calloc(size, sizeof(T)))), size_(size) {
        if (!data_) throw std::bad_alloc();
    }

    size_t size() const { return size_; }
    T* begin() const { return data_.get(); }
    T* end() const { return data_.get() + size_; }
    T& operator[](size_t at) const { return data_.get()[at]; }

  private:
    struct Free {
        void operator()(T* data) const { std::free(data); }
    };

    std::unique_ptr<T, Free> data_;
    size_t size_;
};

}  // namespace llmfast
