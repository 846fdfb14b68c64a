// A growing array of ids: what std::vector is, without the zeroing of memory that is about to be written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace llmfast {

class IdBuffer {
  public:
    uint32_t* data() { return data_.get(); }
    const uint32_t* data() const { return data_.get(); }
    size_t size() const { return size_; }

    // Where to write up to `count` more ids; `grow` says how many were.
    uint32_t* room(size_t count) {
        if (capacity_ - size_ < count) reserve(size_ + count + size_ / 2);
        return data_.get() + size_;
    }
    void grow(size_t count) { size_ += count; }
    void push_back(uint32_t id) {
        *room(1) = id;
        grow(1);
    }

    void reserve(size_t capacity) {
        if (capacity <= capacity_) return;
        resize(capacity);
    }

    // Gives the memory, cut to size, to the caller, who frees it with std::free.
    uint32_t* release() {
        if (size_ < capacity_) resize(size_ ? size_ : 1);
        size_ = capacity_ = 0;
        return data_.release();
    }

  private:
    struct Free { void operator()(uint32_t* data) const { std::free(data); } };

    void resize(size_t capacity) {
        void* moved = std::realloc(data_.get(), capacity * sizeof(uint32_t));
        if (!moved) throw std::bad_alloc();
        static_cast<void>(data_.release());
        data_.reset(static_cast<uint32_t*>(moved));
        capacity_ = capacity;
    }

    std::unique_ptr<uint32_t, Free> data_;
    size_t size_ = 0, capacity_ = 0;
};

}  // namespace llmfast
