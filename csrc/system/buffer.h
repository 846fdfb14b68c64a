// Growable arrays like std::vector, except that new elements are not initialized: their memory is about to be written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "system/pages.h"

namespace llmfast {

template <typename T>
class Buffer {
  public:
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T& operator[](size_t at) { return data_.get()[at]; }
    const T& operator[](size_t at) const { return data_.get()[at]; }

    // Returns where up to `count` more elements may be written; `commit` then says how many were.
    T* prepare(size_t count) {
        if (capacity_ - size_ < count) reserve(size_ + count + size_ / 2);
        return data_.get() + size_;
    }
    void commit(size_t count) { size_ += count; }
    void truncate(size_t size) { size_ = size; }
    void clear() { size_ = 0; }
    void push_back(T value) {
        *prepare(1) = value;
        commit(1);
    }
    void pop_back() { --size_; }

    // Makes `size` elements of any value.
    T* reset(size_t size) {
        clear();
        reserve(size);
        size_ = size;
        return data();
    }

    void reserve(size_t capacity) {
        if (capacity > capacity_) reallocate(capacity);
    }

    // Gives the memory, reduced to the size, to the caller, who frees it with std::free.
    T* release() {
        if (size_ < capacity_) reallocate(size_ ? size_ : 1);
        size_ = capacity_ = 0;
        return data_.release();
    }

  private:
    struct Free {
        void operator()(T* data) const { std::free(data); }
    };

    void reallocate(size_t capacity) {
        void* const moved = size_ == 0 ? allocate_new(capacity) : std::realloc(data_.get(), capacity * sizeof(T));
        if (!moved) throw std::bad_alloc();
        static_cast<void>(data_.release());
        data_.reset(static_cast<T*>(moved));
        capacity_ = capacity;
    }

    // Frees the memory first, as nothing in it is in use.
    void* allocate_new(size_t capacity) {
        data_.reset();
        capacity_ = 0;
        return allocate(capacity * sizeof(T));
    }

    std::unique_ptr<T, Free> data_;
    size_t size_ = 0, capacity_ = 0;
};

using IdBuffer = Buffer<uint32_t>;
using ByteBuffer = Buffer<char>;

}  // namespace llmfast
