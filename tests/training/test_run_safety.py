"""What a run survives, and what it keeps: full disks, damaged checkpoints, other data, a new learning rate."""

import errno
import json
import os
import subprocess

import pytest
import torch
from small_run import new_run, small_config, trainer_of, write_corpus

from llmfast import config as config_files
from llmfast.cli import main
from llmfast.models.folder import checkpoints
from llmfast.models.presets import preset
from llmfast.training.checkpoints import saver
from llmfast.training.checkpoints.checkpoint import best_checkpoint, read_checkpoint, read_state
from llmfast.training.checkpoints.revision import git_commit
from llmfast.training.loop import fit, save
from llmfast.training.session import new_session, resumed_session


def losses(run):
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def names(run):
    return [path.name for path in checkpoints(run)]


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path, monkeypatch):
    session = new_run(tmp_path, steps=6, checkpoint_every=1, evaluate_every=1, keep_last=2, sample_every=0)
    evaluate = session.trainer.evaluate
    made_up = iter([5.0, 3.0, 4.0, 4.5, 3.5, 3.6])
    monkeypatch.setattr(
        session.trainer,
        "evaluate",
        lambda **options: evaluate(**options) | {"loss": next(made_up)},
    )
    fit(session)
    assert names(session.run.folder) == ["step-000002", "step-000005", "step-000006"]
    assert best_checkpoint(session.run.folder).name == "step-000002"


def test_checkpoints_past_a_million_steps_are_in_order(tmp_path):
    for step in (999_999, 1_000_000, 20):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert names(tmp_path) == ["step-000020", "step-999999", "step-1000000"]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch, capsys, in_background):
    settings = {"steps": 9, "checkpoint_every": 2, "evaluate_every": 0, "sample_every": 0, "keep_last": 9}
    session = new_run(tmp_path, async_checkpoints=in_background, **settings)
    write = saver.save_checkpoint

    def full(run, state, **tensors):
        if state["step"] in (4, 6):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(run, state, **tensors)

    monkeypatch.setattr(saver, "save_checkpoint", full)
    fit(session)
    assert names(session.run.folder) == ["step-000002", "step-000008", "step-000009"]
    assert "no space left on device" in capsys.readouterr().out


def test_a_full_disk_at_the_end_is_an_error(tmp_path, monkeypatch):
    session = new_run(tmp_path, steps=2, evaluate_every=0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saver, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        fit(session)


def test_checkpoints_in_the_background_are_those_of_their_step(tmp_path):
    """Trap: tensors written while the optimizer changes them."""
    settings = {"steps": 6, "checkpoint_every": 2, "evaluate_every": 0, "sample_every": 0, "keep_last": 9}
    at_once = new_run(tmp_path / "a", **settings)
    behind = new_run(tmp_path / "b", async_checkpoints=True, **settings)
    fit(at_once)
    fit(behind)
    for a, b in zip(checkpoints(at_once.run.folder), checkpoints(behind.run.folder), strict=True):
        a, b = read_checkpoint(a), read_checkpoint(b)
        assert a.step == b.step
        for part in ("model", "optimizer"):
            ours, theirs = getattr(a, part), getattr(b, part)
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_other_data_is_refused_on_resume(tmp_path):
    """Trap: a run that goes on with other text at a place that means nothing there."""
    session = new_run(tmp_path)
    save(session)
    other = new_session(tmp_path / "other", small_config(write_corpus(tmp_path / "c2", 70)), report=lambda line: None)
    with pytest.raises(ValueError, match=r"the data of this run are not those that .* was trained on"):
        trainer_of(session.config, other.task.prepared).restore(read_checkpoint(checkpoints(session.run.folder)[-1]))


@pytest.fixture
def config_file(tmp_path):
    config = small_config(write_corpus(tmp_path / "corpus"), steps=8, checkpoint_every=2, evaluate_every=0)
    config_files.save(config, tmp_path / "config.yaml")
    return str(tmp_path / "config.yaml")


def test_automatic_resume_begins_goes_on_and_passes_over_damage(tmp_path, config_file, capsys):
    run = tmp_path / "run"
    command = ["train", "--config", config_file, "--out", str(run), "--resume", "auto"]
    assert main(command) == 0
    whole = losses(run)
    newest, before = checkpoints(run)[-1], checkpoints(run)[-2]
    (newest / "model.safetensors").write_bytes(b"not a model")
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 2  # asked for by name, damage is an error
    assert "is damaged" in capsys.readouterr().err
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"skipped     {newest.name}: " in said
    assert f"from step {int(before.name[-6:])}" in said
    assert losses(run) == whole


def test_a_new_learning_rate_on_resume_is_kept_and_positive(tmp_path, config_file, capsys):
    run = tmp_path / "run"
    assert main(["train", "--config", config_file, "--out", str(run)]) == 0
    for rate in ("-0.1", "0", "nan"):
        assert main(["train", "--resume", str(run), "--learning_rate", rate]) == 2
        assert "the learning rate must be positive" in capsys.readouterr().err
    resumed = resumed_session(run, learning_rate=1e-4)
    assert resumed.config.training.learning_rate == 1e-4
    assert resumed.config.training.matrix_learning_rate == pytest.approx(0.02 / 60)
    assert resumed_session(run).trainer.task.config.training.learning_rate == 1e-4
    resumed.trainer.step()
    rates = {group["peak_lr"] for each in resumed.trainer.optimizers for group in each.param_groups}
    assert rates == {1e-4}
    assert main(["train", "--config", config_file, "--out", str(run), "--learning_rate", "1"]) == 2


def test_a_model_that_cannot_fit_is_refused_before_it_is_made(tmp_path):
    session = new_run(tmp_path)
    config = session.config
    config.model = preset("llama-3.1-8b", layers=2000)
    with pytest.raises(
        ValueError,
        match=r"gradients, optimizer of this model need .* GiB per process, but there are .* GiB on cpu",
    ):
        trainer_of(config, session.task.prepared)


def test_a_checkpoint_names_its_code(tmp_path):
    state = read_state(save(new_run(tmp_path)))
    assert state["revision"]["torch"] == torch.__version__
    assert set(state["revision"]) == {"llmfast", "torch", "git"}


def test_the_git_commit_and_whether_it_was_changed(tmp_path):
    assert git_commit(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == commit + "+changes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "auto"], "--resume auto needs --out"),
        (["--dry_run", "--out", "x"], "write nothing"),
        ([], "give either --out FOLDER"),
        (["--out", "x", "--learning_rate", "1"], "--learning_rate is for --resume"),
        (["--resume", "nowhere"], "holds no run to resume"),
        (["--out", "x", "--data.prepared", "nowhere"], "nowhere"),
    ],
)
def test_command_lines_that_make_no_sense_are_explained(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
