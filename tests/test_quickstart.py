"""The main job end to end, through the command line, on a small corpus."""

import json
import os
import subprocess
import sys

import pytest
from small_run import write_corpus

from llmfast.cli import main

pytestmark = pytest.mark.xdist_group("quickstart")  # one worker: what is trained once serves all tests here


def llmfast(*arguments, folder, **environment):
    return subprocess.run(
        [sys.executable, "-m", "llmfast.cli", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            **environment,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    write_corpus(folder / "corpus", documents=80)
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    """A finished quickstart, its time budget tiny: what it printed."""
    done = llmfast("quickstart", "--data", "corpus", "--vocab_size", 320, "--minutes", 0.01, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_it_leaves_a_run_folder_and_says_what_to_do_next(finished, folder):
    run = folder / "runs" / "quickstart"
    assert (run / "config.yaml").exists()
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    (checkpoint, *_) = sorted((run / "checkpoints").iterdir(), reverse=True)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in checkpoint.iterdir()}
    for part in (
        "gzip -9",
        "xz -9",
        "this model",
        "bits per byte",
        "llmfast generate",
        "--resume",
        "--minutes 20",
    ):
        assert part in finished


def test_the_losses_are_in_the_log(finished, folder):
    log = records(folder / "runs" / "quickstart")
    assert 5.5 < log[0]["loss"] < 9  # ln 320 = 5.77: it starts knowing nothing
    assert "final_bits_per_byte" in log[-1]


def test_the_same_command_again_gives_the_same_losses_in_a_folder_of_its_own(finished, folder):
    again = llmfast("quickstart", "--data", "corpus", "--vocab_size", 320, "--minutes", 0.01, folder=folder)
    assert again.returncode == 0, again.stderr
    assert records(folder / "runs" / "quickstart-2") == records(folder / "runs" / "quickstart")


def test_its_model_writes(finished, folder):
    arguments = ("generate", "runs/quickstart", "--prompt", "The fox", "--tokens", 20, "--seed", 3)
    first, second = (llmfast(*arguments, folder=folder) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The fox")
    assert first.stdout == second.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quickstart", "--data", "nowhere.txt"], "nowhere.txt"),
        (["quickstart", "--data", "empty.txt"], "no readable text in empty.txt"),
        (["quickstart", "--data", "corpus", "--vocab_size", "100"], "100"),
        (["quickstart", "--data", "corpus", "--vocab_size", "900000"], "too small for this vocabulary"),
        (["quickstart", "--minutes", "-1"], "minutes must be positive"),
        (["quickstart", "--resume"], "no run to resume"),
        (["generate", "nowhere"], "nowhere is neither a checkpoint nor a run folder"),
        (["train", "--resume", "nowhere"], "nowhere holds no run to resume"),
        (["train"], "--out"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, named):
    write_corpus(tmp_path / "corpus")
    (tmp_path / "empty.txt").write_text("")
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert named in said
    assert said.count("\n") == 0
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "something half-written was left behind"


def test_a_prompt_longer_than_the_context_is_refused(finished, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["generate", "runs/quickstart", "--prompt", "long " * 500]) == 2
    assert "the model takes 1 to 127" in capsys.readouterr().err


def test_a_full_disk_ends_in_one_sentence(tmp_path, monkeypatch, capsys):
    import errno

    from llmfast.data import shards

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_corpus(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards.ShardWriter, "add", full)
    assert main(["quickstart", "--data", "corpus", "--vocab_size", "300", "--out", "run"]) == 2
    assert "no space left on device" in capsys.readouterr().err.lower()
    assert not (tmp_path / "run").exists()


def test_a_speed_measured_beside_other_programs_is_corrected(finished, folder, tmp_path):
    """Trap: a machine that was busy once plans a hundredth of the steps for ever."""
    measured = json.loads((folder / "cache" / "llmfast" / "speed.json").read_text())
    cache = tmp_path / "cache" / "llmfast"
    cache.mkdir(parents=True)
    (cache / "speed.json").write_text(json.dumps({machine: speed / 1000 for machine, speed in measured.items()}))
    options = ["--data", "corpus", "--vocab_size", 320, "--minutes", 0.01, "--out", tmp_path / "run"]
    done = llmfast("quickstart", *options, folder=folder, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "as measured here before" in done.stdout
    corrected = json.loads((cache / "speed.json").read_text())
    assert corrected.keys() == measured.keys()
    assert all(corrected[machine] > 2 * speed / 1000 for machine, speed in measured.items())
