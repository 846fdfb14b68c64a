#!/usr/bin/env bash
# Fuzzes the engine under AddressSanitizer and UndefinedBehaviorSanitizer: run.sh [SECONDS], 600 if left out.
# Needs clang. New inputs are kept in csrc/fuzz/corpus only if they are small; a crash leaves its input behind.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
source core.sh
clang++ -std=c++20 -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
    -I. fuzz/fuzz_encode.cpp "${core[@]}" -o "$build/fuzz"
mkdir "$build/found"
"$build/fuzz" -max_total_time="$seconds" -max_len=4096 -timeout=10 -print_final_stats=1 \
    -dict=fuzz/dictionary.txt "$build/found" fuzz/corpus
