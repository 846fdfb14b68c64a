"""Launches past Triton's own search for the compiled kernel reach the chip as Triton's would: see
tests/lib/launch_probe.py. So do launches of plans: see tests/lib/plan_probe.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="it launches Triton's kernels")

LIB = Path(__file__).parents[1] / "lib"
CHECKS = (
    "one_change_at_a_time",
    "prepared_launches",
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


PLANNED = (
    "rms_norm",
    "layer_norm",
    "swiglu",
    "geglu",
    "gelu",
    "rope",
    "cross_entropy",
    "flash_attention",
    "flash_decode",
    "nf4_linear",
    "plans_are_bounded",
)


def found_by(probe):
    """What each check of a probe found, in a process in which Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(LIB / probe)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def launches():
    return found_by("launch_probe.py")


@pytest.fixture(scope="module")
def plans():
    return found_by("plan_probe.py")


@pytest.mark.xdist_group("launch_probe")
@pytest.mark.parametrize("check", CHECKS)
def test_direct_launches_are_tritons(launches, check):
    assert set(launches) == set(CHECKS)
    assert not launches[check], launches[check]


@pytest.mark.xdist_group("plan_probe")
@pytest.mark.parametrize("op", PLANNED)
def test_plans_launch_what_triton_would_without_them(plans, op):
    assert set(plans) == set(PLANNED)
    assert not plans[op], plans[op]
