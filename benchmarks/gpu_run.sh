#!/usr/bin/env bash
# One command for a machine that has a GPU and no network: builds llmfast, runs the GPU tests, then the benchmarks, and
# ends with a short table. Without a GPU it says so and skips what needs one.
#
#   benchmarks/gpu_run.sh [OPTIONS]                        everything, in order of importance
#   benchmarks/gpu_run.sh [OPTIONS] tests [TEST ...]       the GPU tests; TEST is a file or folder
#   benchmarks/gpu_run.sh [OPTIONS] kernels                the benchmarks of kernels
#   benchmarks/gpu_run.sh [OPTIONS] jobs                   the benchmarks of whole jobs; then the tuner, as time permits
#   benchmarks/gpu_run.sh [OPTIONS] bench [SUITE ...]      these suites
#   benchmarks/gpu_run.sh [OPTIONS] tune [OP ...]          launch choices, into DIR/tables
#
# Where a command may take ten minutes and all of them thirty, run these: tests, kernels, jobs.
#
#   --out DIR     folder for results and the log, which are written as they come (benchmarks/results)
#   --wheels DIR  wheels to install first, as downloaded by pip download --no-deps -d DIR liger-kernel cut-cross-entropy
#   --limit S     ends within S seconds with the results so far (540)
#   --quick       fewer shapes
#   --no-build    measures the installed llmfast
#   --cpu         a rehearsal: tiny benchmarks on the CPU, whose figures mean nothing
#
# PYTHON names the interpreter (python3). Packages are installed into build/gpu_run, never into its environment, and are
# kept for the next run of the same sources.
set -uo pipefail
export PYTHONUNBUFFERED=1 # the log is complete even if this is killed
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
    all | kernels | jobs) set -- ;;
    tests | bench | tune) ;;
    *) echo "gpu_run.sh: the parts are tests, kernels, jobs, bench and tune, not $part" >&2 && exit 2 ;;
esac

mkdir -p "$out"
out=$(cd "$out" && pwd)
site=$PWD/build/gpu_run
failures=0
reserve=15 # seconds for writing the table

left() { echo $((limit - reserve - (SECONDS - started))); }

# Runs a command for at most the given seconds; when interrupted, it still reports its findings.
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
    local sources
    sources=$(find csrc kernels llmfast setup.py pyproject.toml -type f -not -name '*.pyc' -print0 | sort -z |
        xargs -0 cat | sha256sum)
    if [[ $(cat "$site/sources" 2>/dev/null) == "$sources" ]]; then
        echo "== build: the same sources were built before"
        return
    fi
    echo "== build, $(left) s left"
    within "$(left)" "$python" -m pip --disable-pip-version-check install -q --no-index --no-deps \
        --no-build-isolation --upgrade --target "$site" . || { fail "the build failed" && exit 1; }
    echo "$sources" >"$site/sources"
}

# Plugins that pyproject.toml asks for may be missing here, so options are given again. Only files with GPU tests are
# collected, because other tests may need libraries that are missing.
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

# Shares of the time: attention has the most shapes and peers, and whole models take long to build.
share_of() {
    case $1 in
        attention) echo 3 ;;
        linear_cross_entropy | nf4 | train_step | qlora | generate) echo 2 ;;
        *) echo 1 ;;
    esac
}

# The time that is left is shared by the suites that are left.
benchmarks() {
    local suites=("$@") seconds code shares suite
    while [[ ${#suites[@]} -gt 0 ]]; do
        shares=0
        for suite in "${suites[@]}"; do shares=$((shares + $(share_of "$suite"))); done
        seconds=$(($(left) * $(share_of "${suites[0]}") / shares))
        echo "== bench ${suites[0]}, $seconds s"
        if [[ $seconds -lt 5 ]]; then
            fail "no time left for ${suites[*]}"
            return
        fi
        # The suite itself stops before a case that would not end in time; if it still runs later, it hangs.
        within "$((seconds + reserve / 2))" "$python" -m benchmarks "${suites[0]}" "${quick[@]}" --out "$out" \
            --limit "$((seconds > 20 ? seconds - 10 : seconds))"
        code=$?
        [[ $code == 0 ]] || fail "bench ${suites[0]} ended with code $code (124: out of time)"
        suites=("${suites[@]:1}")
    done
}

# Every answer is written to its table at once, so the last one may be cut short.
tune() {
    local ops=("$@") seconds code
    while [[ ${#ops[@]} -gt 0 ]]; do
        seconds=$(($(left) / ${#ops[@]}))
        [[ $seconds -ge 20 ]] || { echo "== no time left to tune ${ops[*]}" && return; }
        echo "== tune ${ops[0]}, $seconds s"
        within "$seconds" "$python" -m benchmarks tune "${ops[0]}" --out "$out/tables" ${tiny:+--tiny}
        code=$?
        [[ $code == 0 || $code == 124 ]] || fail "tune ${ops[0]} ended with code $code"
        ops=("${ops[@]:1}")
    done
}

names() { "$python" -m benchmarks names "$1"; }

main() {
    [[ -z $build ]] || build
    "$python" -c 'import sys; sys.path.pop(0); import llmfast; print("== llmfast of", *llmfast.__path__)'
    no_gpu=$("$python" -m benchmarks check-gpu) || { fail "llmfast cannot be imported" && exit 1; }
    if [[ -z $no_gpu ]]; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader
    else
        echo "== No GPU: $no_gpu"
    fi

    if [[ $part == tests || $part == all ]]; then
        if [[ -n $no_gpu ]]; then
            echo "== tests skipped: they need a GPU, and $no_gpu"
        elif [[ $part == tests ]]; then
            gpu_tests "$(left)" "$@"
        else
            gpu_tests "$(($(left) * 45 / 100))"
        fi
    fi
    local suites=() ops=()
    case $part in
        all) mapfile -t suites < <(names kernels && names jobs) ;;
        kernels | jobs) mapfile -t suites < <(names "$part") ;;
        bench) suites=("$@") && [[ $# -gt 0 ]] || mapfile -t suites < <(names kernels && names jobs) ;;
    esac
    case $part in
        all | jobs) mapfile -t ops < <(names tune) ;;
        tune) ops=("$@") && [[ $# -gt 0 ]] || mapfile -t ops < <(names tune) ;;
    esac
    if [[ -n $no_gpu && -z $tiny ]]; then
        [[ ${#suites[@]} == 0 ]] || echo "== bench ${suites[*]} skipped: it needs a GPU, and $no_gpu (--cpu rehearses without)"
        [[ ${#ops[@]} == 0 ]] || echo "== tune ${ops[*]} skipped: it needs a GPU, and $no_gpu (--cpu rehearses without)"
    else
        benchmarks ${suites[@]+"${suites[@]}"}
        tune ${ops[@]+"${ops[@]}"}
    fi
    if [[ ${#suites[@]} -gt 0 ]]; then
        echo
        "$python" -m benchmarks report "$out" --short
    fi
    echo "gpu_run.sh: $((SECONDS - started)) s, $failures parts failed; log and results are in $out"
    exit $((failures > 0))
}

main "$@" 2>&1 | tee "$out/gpu_run.log"
exit "${PIPESTATUS[0]}"
