#include "bindings.h"

NB_MODULE(_bpe, module) {
    module.doc() = "llmfast's byte-pair-encoding engine";
    bind_encoding(module);
    bind_training(module);
}
