// One function for each part of the module `llmfast._bpe`.
#pragma once

#include <nanobind/nanobind.h>

void bind_encoding(nanobind::module_& module);
void bind_training(nanobind::module_& module);
