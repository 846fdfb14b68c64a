// One function for each part of the module `llmfast._bpe`.
#pragma once

#include <nanobind/nanobind.h>

#include <string_view>

#include "pretokenize/pretokenize.h"

void bind_encoding(nanobind::module_& module);
void bind_splitting(nanobind::module_& module);
void bind_training(nanobind::module_& module);

// The splitting pattern of a name ("gpt2", "cl100k", ...); ValueError for an unknown one.
llmfast::Pattern pattern_named(std::string_view name);
