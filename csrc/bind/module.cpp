#include "bind/module.h"

#include "bind/signals.h"

namespace nb = nanobind;

NB_MODULE(_bpe, module) {
    module.doc() = "llmfast's byte-pair-encoding engine";
    // Objects that a thread still holds when the program ends are no leak worth a warning.
    nb::set_leak_warnings(false);
    llmfast::register_signals();
    bind_encoding(module);
    bind_splitting(module);
    bind_training(module);
}
