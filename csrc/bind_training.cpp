#include "bindings.h"

void bind_training(nanobind::module_&) {}
