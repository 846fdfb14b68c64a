#!/usr/bin/env bash
# Builds and runs the C++ tests: run.sh [COMPILER FLAGS...], such as -fsanitize=address,undefined or -fsanitize=thread;
# -DLLMFAST_PORTABLE leaves out what needs certain instructions, as on a machine without them.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
compiler=("${CXX:-c++}" -std=c++20 -O1 -g -Wall -Wextra -Werror -pthread "$@")
source core.sh
compile_core "$build" "${compiler[@]}"
for test in engine training interrupts decoder; do
    "${compiler[@]}" -I. "tests/test_$test.cpp" "$build"/*.o -o "$build/$test"
done
"$build/engine" fuzz/corpus/*
"$build/training"
"$build/interrupts"
"$build/decoder"
