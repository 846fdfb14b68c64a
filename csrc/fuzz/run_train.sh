#!/usr/bin/env bash
# Checks training against its definition under sanitizers: run_train.sh [ROUNDS], 20000 if left out.
# With clang, libFuzzer looks for inputs for as many runs; without, they are drawn at random. ThreadSanitizer follows.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-20000}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
source core.sh
flags=(-std=c++20 -O1 -g -fno-omit-frame-pointer -I. -pthread fuzz/fuzz_train.cpp "${core[@]}")
if command -v clang++ >/dev/null; then
    clang++ -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all "${flags[@]}" -o "$build/fuzz"
    "$build/fuzz" -runs="$rounds" -max_len=400
else
    g++ -DLLMFAST_RANDOM_INPUTS -D_GLIBCXX_ASSERTIONS -fsanitize=address,undefined -fno-sanitize-recover=all \
        "${flags[@]}" -o "$build/random"
    "$build/random" "$rounds"
fi
g++ -DLLMFAST_RANDOM_INPUTS -fsanitize=thread "${flags[@]}" -o "$build/threads"
"$build/threads" "$((rounds / 20))"
echo "training equals its definition on $rounds inputs"
