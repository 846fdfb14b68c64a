#!/usr/bin/env bash
# Links the core so that GCC sees all of it at once, and fails if a name is defined in two ways: a violation of the
# one-definition rule, which no compiler finds in one file.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
source core.sh
compile_core "$build" g++ -std=c++20 -O1 -flto -fPIC
g++ -flto=1 -flto-partition=one -Wodr -Wlto-type-mismatch -Werror -shared -fPIC "$build"/*.o -o "$build/core.so"
