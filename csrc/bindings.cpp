#include "bindings.h"

NB_MODULE(_bpe, module) {
    module.doc() = "llmfast's byte-pair-encoding engine";
    // What a thread holds that still runs when the program ends is no leak worth a warning.
    nanobind::set_leak_warnings(false);
    bind_encoding(module);
    bind_training(module);
}
