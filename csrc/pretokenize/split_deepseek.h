// split() for Pattern::deepseek.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmfast {

size_t split_deepseek(const char* text, size_t length, uint32_t* ends, size_t capacity);

}  // namespace llmfast
