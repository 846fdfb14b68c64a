// nanobind ships its runtime as source; it is compiled into the extension so that nothing else need be installed.
#include <nb_combined.cpp>
