"""The C++ core without Python: its own tests, built and run, with the fuzzer's corpus."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
RUN = CSRC / "tests" / "run.sh"

# What the files of each folder may include besides those of their own: from the bottom up.
ROOMS = {
    "system": set(),
    "pretokenize": {"system"},
    "vocabulary": {"system"},
    "merge": {"system", "pretokenize", "vocabulary"},
    "encode": {"system", "pretokenize", "vocabulary", "merge"},
    "train": {"system", "pretokenize", "vocabulary"},
    "bind": {"system", "pretokenize", "vocabulary", "merge", "encode", "train"},
    "decoder": {"system", "bind"},  # an extension of its own, with what all bindings share
}


@pytest.mark.timeout(1200)  # compiling takes a minute, and more on a busy machine
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="needs a C++ compiler")
def test_the_core_by_itself():
    """Instruction sets agree, blocks agree with single characters, merging with its definition, threads with one."""
    done = subprocess.run([str(RUN)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert "FAIL" not in done.stdout
    assert done.stdout.split("\n")[:3] == ["ok"] * 3
    assert "decoder: all right" in done.stdout


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_folders_depend_one_way(room):
    """An include from above would make a circle."""
    sources = sorted(path for path in (CSRC / room).rglob("*") if path.is_file())
    assert sources
    for path in sources:
        included = {name.split("/")[0] for name in re.findall(r'#include "(.+)"', path.read_text())}
        assert included <= ROOMS[room] | {room}, path
    assert {path.name for path in CSRC.iterdir() if path.is_dir()} == {*ROOMS, "fuzz", "tests", "tools"}
