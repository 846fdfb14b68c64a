// Buffer arrays: what std::vector is, without the zeroing of memory that is about to be written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
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

    // Where to write up to `count` more; `grow` says how many were.
    T* room(size_t count) {
        if (capacity_ - size_ < count) reserve(size_ + count + size_ / 2);
        return data_.get() + size_;
    }
    void grow(size_t count) { size_ += count; }
    void cut(size_t size) { size_ = size; }
    void clear() { size_ = 0; }
    void push_back(T value) {
        *room(1) = value;
        grow(1);
    }

    void reserve(size_t capacity) {
        if (capacity <= capacity_) return;
        resize(capacity);
    }

    // Gives the memory, cut to size, to the caller, who frees it with std::free.
    T* release() {
        if (size_ < capacity_) resize(size_ ? size_ : 1);
        size_ = capacity_ = 0;
        return data_.release();
    }

  private:
    // Nothing is in the memory there is: it goes first.
    void* allocate_instead(size_t capacity) {
        data_.reset();
        capacity_ = 0;
        return allocate(capacity * sizeof(T));
    }

    struct Free { void operator()(T* data) const { std::free(data); } };

    void resize(size_t capacity) {
        void* moved = size_ == 0 ? allocate_instead(capacity) : std::realloc(data_.get(), capacity * sizeof(T));
        if (!moved) throw std::bad_alloc();
        static_cast<void>(data_.release());
        data_.reset(static_cast<T*>(moved));
        capacity_ = capacity;
    }

    std::unique_ptr<T, Free> data_;
    size_t size_ = 0, capacity_ = 0;
};

using IdBuffer = Buffer<uint32_t>;
using ByteBuffer = Buffer<char>;

}  // namespace llmfast
