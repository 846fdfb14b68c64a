"""The C++ core without Python: its own tests, built and run, with the fuzzer's corpus."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "csrc" / "tests" / "run.sh"


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="needs a C++ compiler")
def test_the_core_by_itself():
    """Instruction sets agree, blocks agree with single characters, merging with its definition, threads with one."""
    done = subprocess.run([str(RUN)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok\n")
