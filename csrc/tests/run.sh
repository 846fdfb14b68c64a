#!/usr/bin/env bash
# Builds and runs the C++ tests: run.sh [COMPILER FLAGS...], such as -fsanitize=address,undefined or -fsanitize=thread.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags=(-std=c++20 -O1 -g -Wall -Wextra -Werror -pthread "$@" -I.)
core=(encoder.cpp merge.cpp merge_lanes.cpp merge_long.cpp pages.cpp pair_table.cpp parallel.cpp pretokenize.cpp classify.cpp
      unicode_tables.cpp vocabulary.cpp)
"${CXX:-c++}" "${flags[@]}" tests/test_engine.cpp "${core[@]}" -o "$build/test"
"$build/test" fuzz/corpus/*
training=(classify.cpp corpus.cpp count_words.cpp pages.cpp parallel.cpp pretokenize.cpp train.cpp unicode_tables.cpp)
"${CXX:-c++}" "${flags[@]}" tests/test_training.cpp "${training[@]}" -o "$build/training"
"$build/training"
