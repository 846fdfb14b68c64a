#include <bit>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "decoder/kernels/kernels.h"

namespace llmfast {
namespace {

#define LLMFAST_INSTRUCTIONS "portable"
#include "decoder/kernels/lanes_portable.h"
//
#include "decoder/kernels/all.h"

}  // namespace

const Kernels& portable_kernels() { return table; }

}  // namespace llmfast
