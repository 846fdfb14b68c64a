"""What a run survives, and what it keeps: full disks, damaged checkpoints, other data, a new learning rate."""

import errno
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from small_run import new_run, small_config, trainer_of, write_corpus

from llmfast import config as config_files
from llmfast.cli import main
from llmfast.models.config import DecoderConfig, ExpertsConfig
from llmfast.models.folder import checkpoints, load_model
from llmfast.models.presets import preset
from llmfast.training.checkpoints import saver
from llmfast.training.checkpoints.checkpoint import best_checkpoint, read_checkpoint, read_state
from llmfast.training.checkpoints.revision import git_commit
from llmfast.training.config import ParallelConfig, TrainingConfig
from llmfast.training.loop import fit, save
from llmfast.training.pretraining import Pretraining
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


def test_options_of_a_resumed_run_are_applied(tmp_path, config_file, capsys):
    """Trap: ``--resume RUN --training.steps 100`` that trains to the old number of steps without a word."""
    run = tmp_path / "run"
    assert main(["train", "--config", config_file, "--out", str(run)]) == 0
    capsys.readouterr()
    longer = ["train", "--resume", str(run), "--training.steps", "10", "--training.keep_last", "3"]
    assert main(longer) == 0
    shown = capsys.readouterr().out
    assert "changed     training.steps from 8 to 10" in shown
    assert "changed     training.keep_last from 2 to 3" in shown
    assert len(losses(run)) == 10
    assert resumed_session(run).config.training.steps == 10


def test_a_file_with_more_steps_is_applied_and_the_same_one_changes_nothing(tmp_path, config_file, capsys):
    run = tmp_path / "run"
    begin = ["train", "--config", config_file, "--out", str(run), "--resume", "auto"]
    assert main(begin) == 0
    assert main(begin) == 0
    assert "changed" not in capsys.readouterr().out
    (tmp_path / "more.yaml").write_text("training:\n  steps: 9\n")
    assert main(["train", "--config", str(tmp_path / "more.yaml"), "--resume", str(run)]) == 0
    assert len(losses(run)) == 9


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--training.batch_size", "2"], "training.batch_size is 4, not 2"),
        (["--training.seed", "5"], "training.seed is 0, not 5"),
        (["--model.width", "64"], "model.width is 16, not 64"),
        (["--data.validation_fraction", "0.4"], "data.validation_fraction is"),
        (["--training.learning_rate", "1e-4"], "--learning_rate sets another learning rate"),
    ],
)
def test_options_that_a_resumed_run_cannot_have_are_refused_by_name(tmp_path, config_file, capsys, options, named):
    run = tmp_path / "run"
    assert main(["train", "--config", config_file, "--out", str(run), "--training.steps", "2"]) == 0
    before = (run / "config.yaml").read_bytes()
    assert main(["train", "--resume", str(run), *options]) == 2
    assert named in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_an_option_that_is_the_default_is_refused_as_others_are(tmp_path, config_file, capsys):
    """Trap: a value that happens to be the default looks like one that was not given."""
    run = tmp_path / "run"
    begin = ["train", "--config", config_file, "--out", str(run), "--training.steps", "2", "--training.seed", "5"]
    assert main(begin) == 0
    assert main(["train", "--resume", str(run), "--training.seed", "0"]) == 2
    assert "training.seed is 5, not 0" in capsys.readouterr().err


def test_prepared_data_are_found_from_another_folder(tmp_path, config_file, monkeypatch):
    """Trap: a run that was begun with a relative path, and is resumed from elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "prepared", "--sources", "corpus", "--vocab_size", "300"]) == 0
    command = ["train", "--config", config_file, "--data.prepared", "prepared", "--training.steps", "2"]
    assert main([*command, "--out", "run"]) == 0
    assert main([*command, "--out", "run", "--resume", "auto"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--resume", "../run", "--training.steps", "3"]) == 0


TRAINS_UNTIL_TOLD = """
import sys
from pathlib import Path
from llmfast.training.session import resumed_session
session = resumed_session(Path(sys.argv[1]))
print("training", flush=True)
sys.stdin.readline()
"""


def test_two_processes_do_not_train_one_run(tmp_path, config_file, capsys):
    run = tmp_path / "run"
    assert main(["train", "--config", config_file, "--out", str(run), "--training.steps", "2"]) == 0
    program = [sys.executable, "-c", TRAINS_UNTIL_TOLD, str(run)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "training\n"
        assert main(["train", "--resume", str(run)]) == 2
        assert f"{run} is being trained by process {other.pid} on " in capsys.readouterr().err
        other.kill()
    assert main(["train", "--resume", str(run)]) == 0  # what a killed process left locks nobody out


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from llmfast.models.tensors import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # as a disk with no more room
try:
    write_tensors(Path(sys.argv[1]), {"a": torch.zeros(10_000)})
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_disk_without_room_is_reported_as_such(tmp_path):
    """Trap: the library's own error, a traceback that says neither the file nor the cause in known words."""
    shown = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.safetensors")], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [str(errno.EFBIG), str(tmp_path / "a.safetensors")]


def test_an_altered_state_is_found(tmp_path):
    """Trap: the tensors are checked and the numbers beside them, such as the step, are not."""
    session = new_run(tmp_path)
    save(session)
    folder = checkpoints(session.run.folder)[-1]
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"step": state["step"] + 1}))
    with pytest.raises(ValueError, match=r"state\.json is damaged: its checksum"):
        read_checkpoint(folder)
    with pytest.raises(ValueError, match=r"state\.json is damaged: its checksum"):
        load_model(folder)


@pytest.mark.parametrize("name", ["weight_decay", "evaluate_every", "sample_every", "beta1", "beta2"])
def test_negative_settings_are_refused(name):
    with pytest.raises(ValueError, match=rf"training\.{name} must be"):
        TrainingConfig(**{name: -1})


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
    resumed.run.unlock()
    for option in ([], ["--learning_rate", "2e-4"]):  # trap: the file that the run began with is refused from then on
        capsys.readouterr()
        assert main(["train", "--config", config_file, "--resume", str(run), *option]) == 0
        assert "kept        training.learning_rate at 0.0001" in capsys.readouterr().out
    assert resumed_session(run).config.training.learning_rate == 2e-4
    assert main(["train", "--config", config_file, "--resume", str(run), "--training.learning_rate", "1"]) == 2
    assert "training.learning_rate is 0.0002, not 1.0" in capsys.readouterr().err


def test_a_model_that_cannot_fit_is_refused_before_it_is_made(tmp_path):
    session = new_run(tmp_path)
    config = session.config
    config.model = preset("llama-3.1-8b", layers=2000)
    with pytest.raises(
        ValueError,
        match=r"gradients, optimizer of this model need .* GiB per process, but there are .* GiB on cpu",
    ):
        trainer_of(config, session.task.prepared)


def with_experts(**settings):
    return DecoderConfig(experts=ExpertsConfig(**settings))


@pytest.mark.parametrize(
    ("section", "name", "values"),
    [
        (TrainingConfig, "learning_rate", (math.inf, math.nan, 0)),
        (TrainingConfig, "matrix_learning_rate", (math.inf, -1)),
        (TrainingConfig, "weight_decay", (math.inf, math.nan, -0.1)),
        (TrainingConfig, "clip_norm", (math.nan, 0)),
        (TrainingConfig, "seed", (2**63, -(2**80))),
        (ParallelConfig, "timeout", (math.inf, math.nan, 0)),
        (DecoderConfig, "rope_base", (math.inf, math.nan, -1, 0)),
        (DecoderConfig, "window_rope_base", (math.inf, 0)),
        (DecoderConfig, "norm_eps", (math.inf, math.nan, -1e-6)),
        (DecoderConfig, "kv_heads", (0, -2)),
        (DecoderConfig, "ff_width", (0, -8)),
        (with_experts, "count", (-1,)),
        (with_experts, "width", (0,)),
        (with_experts, "shared_width", (-8,)),
        (with_experts, "auxiliary_weight", (math.inf, math.nan, -1)),
        (with_experts, "bias_rate", (math.nan, -1)),
        (with_experts, "z_loss_weight", (math.nan, -1)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_numbers_that_no_run_can_have_are_refused_by_name(section, name, values):
    """Trap: a loss of NaN at the second step, a division by zero, or a setting that is passed over."""
    for value in values:
        with pytest.raises(ValueError, match=rf"\.{name} "):
            section(**{name: value})


def test_damaged_files_of_a_run_are_named(tmp_path, capsys):
    """Trap: a traceback, or a sentence of the standard library that names no file."""
    session = new_run(tmp_path, steps=2, evaluate_every=0, sample_every=0)
    fit(session)
    session.run.unlock()
    run = session.run.folder
    (run / "checkpoints" / "step-of-mine").mkdir()  # not one of ours: passed over
    (run / "log.jsonl").write_bytes((run / "log.jsonl").read_bytes() + b'[1]\n\xff\xfe\n{"ste')
    assert main(["train", "--resume", str(run), "--training.steps", "1"]) == 2
    assert f"training.steps is 1, but {run} has done 2 steps" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--training.steps", "3"]) == 0
    capsys.readouterr()
    state = run / "checkpoints" / "step-000003" / "state.json"
    for file, content in ((state, "[]"), (run / "config.yaml", " ")):
        whole = file.read_text()
        file.write_text(content)
        assert main(["train", "--resume", str(run)]) == 2
        assert str(file) in capsys.readouterr().err
        file.write_text(whole)


@pytest.mark.parametrize(
    ("training", "error", "message"),
    [
        ({}, ValueError, r"this model need .* GiB per process"),
        ({"track": ("missing_tracker",)}, ModuleNotFoundError, "missing_tracker"),
        ({"evaluations": ("nowhere:nothing",)}, ValueError, "'nowhere:nothing' is neither module:function"),
        ({"copy_to": "nonsense://bucket/run"}, ValueError, "nonsense://bucket/run: .*not known"),
    ],
    ids=["memory", "tracker", "evaluation", "address"],
)
def test_what_a_run_lacks_is_said_before_its_data_is_prepared(tmp_path, monkeypatch, training, error, message):
    """Trap: hours of preparing data, removed again because of a setting that was wrong from the start."""
    config = small_config(write_corpus(tmp_path / "corpus"), **training)
    if not training:
        config.model = preset("llama-3.1-8b", layers=2000)
    monkeypatch.setattr(Pretraining, "prepare", lambda *arguments, **options: pytest.fail("data is prepared"))
    with pytest.raises(error, match=message):
        new_session(tmp_path / "run", config, report=lambda line: None)
    assert not (tmp_path / "run").exists()


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
