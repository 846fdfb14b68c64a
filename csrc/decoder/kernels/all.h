// The kernels on top of the Lanes of an instruction set, in the namespace that includes this.
#include "decoder/kernels/multiply.h"
//
#include "decoder/kernels/elementwise.h"
//
#include "decoder/kernels/attention.h"

const Kernels table = {
    LLMFAST_INSTRUCTIONS, multiply, attend<float>, attend<uint16_t>, normalize, add, activate, quantize,
};
