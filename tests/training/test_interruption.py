"""A run that is stopped, gently or not, goes on exactly: driven through the command line, as a person would."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from small_run import small_config, write_corpus

from llmfast import config as config_files

pytestmark = pytest.mark.xdist_group("interruption")  # one worker: what is trained once serves all tests here
STEPS = 120


def command(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "llmfast.cli", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def losses(run):
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A configuration file, and the losses of a run of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("interruption")
    config = small_config(
        write_corpus(folder / "corpus"), steps=STEPS, checkpoint_every=10, evaluate_every=50, sample_every=0
    )
    config_files.save(config, folder / "config.yaml")
    process = command("--config", folder / "config.yaml", "--out", folder / "run")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return folder / "config.yaml", losses(folder / "run")


def wait_for_steps(run, count):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if (run / "log.jsonl").exists() and len((run / "log.jsonl").read_text().splitlines()) >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {count} steps in 90 s")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_loses_no_step(uninterrupted, tmp_path, how):
    config, expected = uninterrupted
    process = command("--config", config, "--out", tmp_path / "run")
    wait_for_steps(tmp_path / "run", 13)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume {tmp_path / 'run'}" in output
    assert "Traceback" not in output
    done = losses(tmp_path / "run")
    assert done == expected[: len(done)]
    assert (tmp_path / "run" / "checkpoints" / f"step-{len(done):06d}").is_dir()

    process = command("--resume", tmp_path / "run")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert losses(tmp_path / "run") == expected


def test_kills_at_random_moments_change_nothing(uninterrupted, tmp_path):
    """Trap: a checkpoint half-written, a log with a torn line, a resume that repeats or skips data."""
    config, expected = uninterrupted
    run = tmp_path / "run"
    random_moments = random.Random(os.environ.get("PYTEST_RANDOMLY_SEED", "7"))
    process = command("--config", config, "--out", run)
    for _ in range(3):
        before = len((run / "log.jsonl").read_text().splitlines()) if (run / "log.jsonl").exists() else 0
        wait_for_steps(run, min(before - before % 10 + 12, STEPS))
        time.sleep(random_moments.uniform(0, 0.15))
        process.kill()
        process.wait()
        process = command("--resume", run)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert losses(run) == expected
    assert not list(run.rglob("*.partial"))
