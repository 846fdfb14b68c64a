#!/usr/bin/env bash
# One command for a machine that has a GPU, little time and no network: compiles every kernel for its chip on all cores, runs
# the tests and measures the cases that tell most, and ends with a short table.
#
#   benchmarks/gpu_run.sh [--limit 520] --out DIR    the first call
#   benchmarks/gpu_run.sh --limit 200 --out DIR      the next ones on the same machine: what the first left, other tests,
#                                                    and what PyTorch compiles
#
#   --wheels DIR  peers, as downloaded by pip download --no-deps -d DIR liger-kernel cut-cross-entropy bitsandbytes
#   --cpu         a rehearsal without a GPU, whose figures mean nothing
#
# DIR gets gpu_call.log, table.md and results.tar.gz, whose files belong in benchmarks/results. Nothing is built or installed;
# build/gpu_call holds what the next call resumes. PYTHON names the interpreter (python3).
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
