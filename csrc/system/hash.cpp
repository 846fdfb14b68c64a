#include "system/hash.h"

#include <random>

namespace llmfast {

const HashSecret kHashSecret = [] {
    std::random_device device;
    const auto word = [&] { return uint64_t{device()} << 32 | device(); };
    return HashSecret{word() | 1, word() | 1};
}();

}  // namespace llmfast
