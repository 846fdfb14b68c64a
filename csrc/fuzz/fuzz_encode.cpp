// libFuzzer's entry point; see run.sh.
#include "fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    llmfast::fuzz::check(data, size);
    return 0;
}
