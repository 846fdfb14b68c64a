"""Launches past Triton's own search for the compiled kernel reach the chip as Triton's would: see
tests/lib/launch_probe.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="it launches Triton's kernels")

PROBE = Path(__file__).parents[1] / "lib" / "launch_probe.py"
CHECKS = (
    "one_change_at_a_time",
    "random_launches",
    "every_launch_of_the_library",
    "whatever_watches_launches_sees_them",
    "what_is_unknown_is_left_to_triton",
    "other_kinds_of_kernels_are_left_alone",
    "what_does_not_compile_is_asked_for_again",
    "a_launch_that_fails_fails_again",
    "another_driver_has_kernels_of_its_own",
    "threads_launch_side_by_side",
)


@pytest.fixture(scope="module")
def found():
    """What each check found, in a process in which Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(PROBE)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.xdist_group("launch_probe")
@pytest.mark.parametrize("check", CHECKS)
def test_direct_launches_are_tritons(found, check):
    assert set(found) == set(CHECKS)
    assert not found[check], found[check]
