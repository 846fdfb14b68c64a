#include <nanobind/nanobind.h>

NB_MODULE(_bpe, m) { m.doc() = "llmfast's byte-pair-encoding engine"; }
