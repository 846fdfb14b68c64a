#!/usr/bin/env bash
# Builds and runs the C++ tests: run.sh [COMPILER FLAGS...], such as -fsanitize=address,undefined or -fsanitize=thread.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags=(-std=c++20 -O1 -g -Wall -Wextra -Werror -pthread "$@" -I.)
source core.sh
for source in "${core[@]}"; do "${CXX:-c++}" "${flags[@]}" -c "$source" -o "$build/${source%.cpp}.o"; done
for test in engine training; do
    "${CXX:-c++}" "${flags[@]}" "tests/test_$test.cpp" "$build"/*.o -o "$build/$test"
done
"$build/engine" fuzz/corpus/*
"$build/training"
