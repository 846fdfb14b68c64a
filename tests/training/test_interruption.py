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
    """A configuration file, and the losses and the final parameters of a run of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("interruption")
    config = small_config(
        write_corpus(folder / "corpus"), steps=STEPS, checkpoint_every=10, evaluate_every=50, sample_every=0
    )
    config_files.save(config, folder / "config.yaml")
    process = command("--config", folder / "config.yaml", "--out", folder / "run")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return folder / "config.yaml", losses(folder / "run"), final_model(folder / "run")


def final_model(run):
    return (run / "checkpoints" / f"step-{STEPS:06d}" / "model.safetensors").read_bytes()


def wait_for_steps(run, count):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if (run / "log.jsonl").exists() and len((run / "log.jsonl").read_text().splitlines()) >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {count} steps in 90 s")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_says_how_to_go_on_and_loses_no_step(uninterrupted, tmp_path, how):
    config, expected, model = uninterrupted
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
    assert final_model(tmp_path / "run") == model


def test_sigusr1_saves_and_the_run_continues(uninterrupted, tmp_path):
    """What batch systems send some time before they end a job."""
    config, expected, model = uninterrupted
    process = command("--config", config, "--out", tmp_path / "run", "--training.checkpoint_every", "1000")
    wait_for_steps(tmp_path / "run", 13)
    process.send_signal(signal.SIGUSR1)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 60
    while not (checkpoints.exists() and list(checkpoints.glob("step-*"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert int(next(checkpoints.glob("step-*")).name.removeprefix("step-")) < STEPS
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert losses(tmp_path / "run") == expected
    assert final_model(tmp_path / "run") == model


def log_length(run):
    return len((run / "log.jsonl").read_text().splitlines()) if (run / "log.jsonl").exists() else 0


def test_kills_at_random_moments_change_nothing(uninterrupted, tmp_path):
    """Trap: a checkpoint half-written, a log with a torn line, a resume that repeats or skips data.

    LLMFAST_TEST_KILLS sets the number of kills. One in three falls before the first step of its process: into imports,
    the preparation of the data, or the reading of a checkpoint.
    """
    config, expected, model = uninterrupted
    run = tmp_path / "run"
    moments = random.Random(os.environ.get("PYTEST_RANDOMLY_SEED", "7"))
    start = ["--config", config, "--out", run, "--resume", "auto"]
    for number in range(int(os.environ.get("LLMFAST_TEST_KILLS", 3))):
        process = command(*start)
        if number % 3 == 0:
            time.sleep(moments.uniform(0, 4))
        else:
            wait_for_steps(run, min(log_length(run) + moments.randint(1, 12), STEPS))
            time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate()
    output, _ = command(*start).communicate(timeout=120)
    assert losses(run) == expected, output
    assert final_model(run) == model
    assert not list(run.rglob("*.partial"))
