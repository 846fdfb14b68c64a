#!/usr/bin/env bash
# Fuzzes the engine under AddressSanitizer and UndefinedBehaviorSanitizer: run.sh [SECONDS] [COMPILER FLAGS...], 600 seconds for
# each target if left out: any text on one vocabulary (encode), and repetitive text on random and trained ones (vocabulary).
# Needs clang ($CLANGXX, or clang++). New inputs are not kept; a crash leaves its input behind. Flags: -DLLMFAST_PORTABLE.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
shift || true
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
source core.sh
compiler=("${CLANGXX:-clang++}" -std=c++20 -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all "$@")
compile_core "$build" "${compiler[@]}" -fsanitize=fuzzer-no-link,address,undefined
for target in encode vocabulary; do
    "${compiler[@]}" -fsanitize=fuzzer,address,undefined -I. "fuzz/fuzz_$target.cpp" "$build"/*.o -o "$build/$target"
    mkdir "$build/found-$target"
done
limits=(-max_total_time="$seconds" -timeout=10 -print_final_stats=1)
"$build/encode" "${limits[@]}" -max_len=4096 -dict=fuzz/dictionary.txt "$build/found-encode" fuzz/corpus
"$build/vocabulary" "${limits[@]}" -max_len=400 "$build/found-vocabulary"
