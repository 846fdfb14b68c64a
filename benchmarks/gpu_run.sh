#!/usr/bin/env bash
# One command for a machine that has a GPU and reaches nothing else: builds llmfast without network, runs the GPU
# tests, then the benchmarks, and ends with a short table. Without a GPU it says so and skips what needs one.
#
#   benchmarks/gpu_run.sh [OPTIONS]                        all of it
#   benchmarks/gpu_run.sh [OPTIONS] tests [TEST ...]       the GPU tests; TEST is a file or folder
#   benchmarks/gpu_run.sh [OPTIONS] bench [SUITE ...]      the benchmarks
#
#   --out DIR     where results and the log go, written as they come (benchmarks/results)
#   --wheels DIR  optional wheels to install first, as of pip download --no-deps -d DIR liger-kernel cut-cross-entropy
#   --limit S     ends inside S seconds, with what it has by then (540)
#   --quick       fewer shapes
#   --no-build    measures the llmfast that is installed
#   --cpu         a rehearsal: tiny benchmarks on the CPU, whose figures mean nothing
#
# PYTHON names the interpreter (python3). What is installed goes to build/gpu_run, never into its environment.
set -uo pipefail
export PYTHONUNBUFFERED=1 # the log is whole even if this is killed
unset TRITON_INTERPRET
started=$SECONDS
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

python=${PYTHON:-python3} out=benchmarks/results wheels="" limit=540 build=yes tiny="" quick=()
while [[ ${1:-} == --* ]]; do
    case $1 in
        --out) out=$2 && shift ;;
        --wheels) wheels=$2 && shift ;;
        --limit) limit=$2 && shift ;;
        --quick) quick=(--quick) ;;
        --no-build) build="" ;;
        --cpu) tiny=yes quick=(--tiny) ;;
        *) echo "gpu_run.sh: unknown option $1; the head of $0 lists them" >&2 && exit 2 ;;
    esac
    shift
done
part=${1:-all}
[[ $# -gt 0 ]] && shift
case $part in
    all) set -- ;;
    tests | bench) ;;
    *) echo "gpu_run.sh: the parts are tests and bench, not $part" >&2 && exit 2 ;;
esac

mkdir -p "$out"
out=$(cd "$out" && pwd)
site=$PWD/build/gpu_run
failures=0
reserve=15 # seconds that writing the table may take

left() { echo $((limit - reserve - (SECONDS - started))); }

# Runs a command for at most the given seconds; interrupted, it still says what it found.
within() {
    local seconds=$1
    shift
    timeout --signal=INT --kill-after=10 "$((seconds > 1 ? seconds : 1))" "$@"
}

fail() {
    echo "gpu_run.sh: $1"
    failures=$((failures + 1))
}

install() { "$python" -m pip --disable-pip-version-check install -q --no-index --no-deps --upgrade --target "$site" "$@"; }

build() {
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    local wheel
    for wheel in ${wheels:+"$wheels"/*.whl}; do
        [[ -e $wheel ]] || continue
        install "$wheel" || echo "gpu_run.sh: $(basename "$wheel") could not be installed; going on without it"
    done
    echo "== build, $(left) s left"
    within "$(left)" "$python" -m pip --disable-pip-version-check install -q --no-index --no-deps \
        --no-build-isolation --upgrade --target "$site" . || { fail "the build failed" && exit 1; }
}

# Plugins that pyproject.toml asks for may be missing here: options are given anew. Only what has GPU tests is
# collected, since other tests may need libraries that are missing, too.
gpu_tests() {
    local seconds=$1 workers=()
    shift
    [[ $# -gt 0 ]] || mapfile -t < <(echo tests/kernels && grep -rl 'mark\.gpu' tests --include='test_*.py' | grep -v ^tests/kernels/)
    "$python" -c 'import xdist' 2>/dev/null && workers=(-n "$(($(nproc) < 8 ? $(nproc) : 8))" --dist loadgroup)
    echo "== tests, at most $seconds s"
    within "$seconds" "$python" -m pytest -p no:randomly -p no:cacheprovider -o addopts= --import-mode=importlib \
        --continue-on-collection-errors "${workers[@]}" -m gpu -q -rfE --tb=short "${@:-${MAPFILE[@]}}"
    local code=$?
    [[ $code == 0 ]] || fail "tests ended with code $code (124: out of time)"
}

# The time that is left is shared by the suites that are left.
benchmarks() {
    [[ $# -gt 0 ]] || mapfile -t < <("$python" -m benchmarks names)
    local suites=("${@:-${MAPFILE[@]}}") seconds code
    while [[ ${#suites[@]} -gt 0 ]]; do
        seconds=$(($(left) / ${#suites[@]}))
        echo "== bench ${suites[0]}, $seconds s"
        if [[ $seconds -lt 5 ]]; then
            fail "no time left for ${suites[*]}"
            return
        fi
        # The suite itself stops before a case that would not end in time; what still runs later hangs.
        within "$((seconds + reserve / 2))" "$python" -m benchmarks "${suites[0]}" "${quick[@]}" --out "$out" \
            --limit "$((seconds > 20 ? seconds - 10 : seconds))"
        code=$?
        [[ $code == 0 ]] || fail "bench ${suites[0]} ended with code $code (124: out of time)"
        suites=("${suites[@]:1}")
    done
}

main() {
    [[ -z $build ]] || build
    "$python" -c 'import sys; sys.path.pop(0); import llmfast; print("== llmfast of", *llmfast.__path__)'
    no_gpu=$("$python" -m benchmarks check-gpu) || { fail "llmfast cannot be imported" && exit 1; }
    if [[ -z $no_gpu ]]; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader
    else
        echo "== No GPU: $no_gpu"
    fi

    if [[ $part != bench ]]; then
        if [[ -n $no_gpu ]]; then
            echo "== tests skipped: they need a GPU, and $no_gpu"
        elif [[ $part == tests ]]; then
            gpu_tests "$(left)" "$@"
        else
            gpu_tests "$(($(left) * 45 / 100))"
        fi
    fi
    if [[ $part != tests ]]; then
        if [[ -n $no_gpu && -z $tiny ]]; then
            echo "== bench ${*:-(every suite)} skipped: it needs a GPU, and $no_gpu (--cpu rehearses without)"
        else
            benchmarks "$@"
        fi
        echo
        "$python" -m benchmarks report "$out" --short
    fi
    echo "gpu_run.sh: $((SECONDS - started)) s, $failures parts failed; log and results are in $out"
    exit $((failures > 0))
}

main "$@" 2>&1 | tee "$out/gpu_run.log"
exit "${PIPESTATUS[0]}"
