"""What can be seen of a run: logs to other programs, profiles, evaluations of one's own, checks, sweeps."""

import dataclasses
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from small_labels import labels_config, write_labels
from small_run import new_run, small_config, trainer_of, write_corpus

from llmfast import config as config_files
from llmfast.cli import main
from llmfast.commands.train import sweep
from llmfast.models.config import ExpertsConfig
from llmfast.models.folder import checkpoints
from llmfast.training.config import RunConfig
from llmfast.training.loop import fit
from llmfast.training.monitoring.evaluations import named_evaluation
from llmfast.training.session import resumed_session
from llmfast.training.sweep import combinations
from llmfast.visualization.curves import plot_losses

QUIET = {"steps": 4, "evaluate_every": 2, "sample_every": 0}


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    session = new_run(tmp_path, track=("tensorboard",), **QUIET)
    fit(session)
    events = EventAccumulator(str(session.run.folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("validation_loss")] == [2, 4]
    logged = [record["loss"] for record in session.run.records() if "loss" in record]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged)


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    session = new_run(tmp_path, track=("wandb",), **QUIET)
    fit(session)
    (file,) = (session.run.folder / "wandb").glob("offline-run-*/*.wandb")
    assert b"validation_loss" in file.read_bytes()


def test_the_learning_rates_themselves_are_logged(tmp_path):
    session = new_run(tmp_path, optimizer="muon", learning_rate=1e-3, matrix_learning_rate=0.02, **QUIET)
    fit(session)
    for record in (record for record in session.run.records() if "loss" in record):
        assert record["learning_rate"] == 1e-3 * record["learning_rate_factor"]
        assert record["matrix_learning_rate"] == 0.02 * record["learning_rate_factor"]


def test_a_log_is_json_whatever_the_figures_are(tmp_path):
    """Trap: NaN in a log, which most readers of JSON refuse."""
    run = new_run(tmp_path, **QUIET).run
    run.log(step=1, loss=float("nan"), figure=float("inf"), whole=3)
    (record,) = run.log_file.read_text().splitlines()
    assert record == '{"step": 1, "loss": null, "figure": null, "whole": 3}'
    plot_losses(run.records(), tmp_path / "loss.png")


def test_how_a_run_is_filed(tmp_path, monkeypatch):
    wandb, trackio = pytest.importorskip("wandb"), pytest.importorskip("trackio")
    seen = {}
    for module in (wandb, trackio):
        library = module.__name__
        monkeypatch.setattr(
            module, "init", lambda library=library, **given: seen.update({library: given}) or Recorder()
        )
    monkeypatch.setattr(trackio, "log", lambda *_, **__: None)
    monkeypatch.setattr(trackio, "finish", lambda: None)
    monkeypatch.setattr(Recorder, "finish", lambda self: None, raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "from-the-environment")
    fit(new_run(tmp_path / "a", track=("wandb", "trackio"), track_group="g", track_tags=("x", "y"), **QUIET))
    assert [seen["wandb"][name] for name in ("project", "group", "tags")] == ["from-the-environment", "g", ("x", "y")]
    assert [seen["trackio"][name] for name in ("project", "group")] == ["llmfast", "g"]
    fit(new_run(tmp_path / "b", track=("wandb", "trackio"), track_project="mine", **QUIET))
    assert seen["wandb"]["project"] == seen["trackio"]["project"] == "mine"


def test_a_tracker_is_given_no_step_twice(tmp_path, monkeypatch):
    """Trap: a killed run repeats the steps after its checkpoint, which Trackio then shows twice."""
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr(trackio, "init", calls := Recorder())
    monkeypatch.setattr(trackio, "log", calls.log)
    monkeypatch.setattr(trackio, "finish", lambda: None)
    session = new_run(tmp_path, track=("trackio",), checkpoint_every=2, **(QUIET | {"steps": 5}))
    fit(session)
    for killed in ("step-000005", "step-000004"):
        shutil.rmtree(session.run.folder / "checkpoints" / killed)
    fit(resumed_session(session.run.folder))
    losses = [step for step, figures in calls.logged if "loss" in figures]
    assert losses == [1, 2, 3, 4, 5]


def test_trackio(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr(trackio, "init", calls := Recorder())
    monkeypatch.setattr(trackio, "log", calls.log)
    monkeypatch.setattr(trackio, "finish", lambda: None)
    fit(new_run(tmp_path, track=("trackio",), **QUIET))
    assert calls.project == "llmfast"
    assert [step for step, figures in calls.logged if "loss" in figures] == [1, 2, 3, 4]


def test_trackers_are_told_the_speed_and_the_log_is_the_same_in_every_run(tmp_path, monkeypatch):
    calls = Recorder()
    stand_in = types.SimpleNamespace(init=calls, log=calls.log, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    session = new_run(tmp_path, track=("trackio",), **QUIET)
    fit(session)
    assert any(figures.get("tokens_per_second", 0) > 0 for _, figures in calls.logged)
    assert not any("tokens_per_second" in record for record in session.run.records())


def test_a_tracker_that_cannot_be_opened_says_why(tmp_path, monkeypatch):
    """Trap: a traceback of a library that wants an account."""
    wandb = pytest.importorskip("wandb")

    def refuse(**options):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"track wandb cannot be used: No API key configured\.; WANDB_MODE=off"):
        fit(new_run(tmp_path, track=("wandb",), **QUIET))


def test_a_run_that_diverged_goes_on_without_its_sample(tmp_path, capsys):
    """Trap: the draw of a token by probabilities that are NaN ends a run that was told to skip bad steps."""
    session = new_run(
        tmp_path,
        learning_rate=1e12,
        warmup=0.0,
        on_bad_step="skip",
        steps=4,
        sample_every=4,
        evaluate_every=0,
    )
    fit(session)
    assert "step 4: no sample, the model's logits hold NaN or infinity" in capsys.readouterr().out


class Recorder:
    """Stands for trackio, which starts a server of its own."""

    def __init__(self):
        self.logged = []

    def __call__(self, project, **options):
        self.project = project

    def log(self, figures, step):
        self.logged.append((step, figures))


def count_letters(model, tokenizer):
    return {"letters": float(tokenizer.n_vocab)}


def test_evaluations_of_ones_own(tmp_path, capsys):
    session = new_run(tmp_path, evaluations=(f"{__name__}:count_letters",), **QUIET)
    fit(session)
    assert [(r["step"], r["letters"]) for r in session.run.records() if "letters" in r] == [
        (2, 300),
        (4, 300),
    ]
    assert "letters 300" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'llmfast:nothing' is neither module:function"):
        new_run(tmp_path / "other", evaluations=("llmfast:nothing",), **QUIET)
    assert not (tmp_path / "other" / "run").exists()


def count_lines(model, tokenizer, data):
    return {"lines": len(data.read_text().splitlines())}


def test_an_evaluation_gets_the_file_behind_its_name(tmp_path):
    """Trap: a misspelled file that is found after the first hours of a run."""
    (tmp_path / "questions.jsonl").write_text("{}\n{}\n")
    session = new_run(tmp_path, evaluations=(f"{__name__}:count_lines:{tmp_path / 'questions.jsonl'}",), **QUIET)
    fit(session)
    assert [record["lines"] for record in session.run.records() if "lines" in record] == [2, 2]
    for name, message in (
        (f"count_lines:{tmp_path / 'none'}", "there is no file"),
        ("count_letters:x", "no argument data"),
    ):
        with pytest.raises(ValueError, match=message):
            named_evaluation(f"{__name__}:{name}")


def count_and_fail(model, tokenizer):
    raise FileNotFoundError("no file of questions")


def test_a_failing_evaluation_is_named_and_the_run_is_saved_before_it_ends(tmp_path):
    session = new_run(tmp_path, evaluations=(f"{__name__}:count_and_fail",), **QUIET)
    with pytest.raises(ValueError, match=r"test_watching:count_and_fail failed at step 2, which is saved: .*questions"):
        fit(session)
    assert [folder.name for folder in checkpoints(session.run.folder)] == ["step-000002"]


def count_in_tensors(model, tokenizer):
    return {"letters": torch.tensor(3), "share": np.float32(0.5)}


def test_figures_of_an_evaluation_may_be_scalars_of_any_library(tmp_path):
    session = new_run(tmp_path, evaluations=(f"{__name__}:count_in_tensors",), **QUIET)
    fit(session)
    assert [(r["letters"], r["share"]) for r in session.run.records() if "letters" in r] == [(3.0, 0.5)] * 2


@pytest.mark.parametrize("steps", [4, 6])
def test_a_profile_is_a_trace_of_a_few_steps(tmp_path, steps):
    session = new_run(tmp_path, steps=steps, evaluate_every=0, sample_every=0)
    fit(session, profile=True)
    trace = json.loads((session.run.folder / "profile.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert any("aten::mm" in name for name in names)
    recorded = min(steps - 2, 3)
    for name in ("data", "forward", "backward", "step"):
        assert names.count(name) == recorded


def test_the_load_of_experts_is_logged_and_tracked_by_layer(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    session = new_run(tmp_path, steps=4, evaluate_every=2, sample_every=0)
    config = session.config
    config.model = dataclasses.replace(config.model, layers=3, experts=ExpertsConfig(count=4, active=2, pattern="ed"))
    config.training = dataclasses.replace(config.training, track=("tensorboard",))
    trainer = trainer_of(config, session.task.prepared)
    session = dataclasses.replace(session, task=trainer.task, trainer=trainer)
    fit(session)
    steps = [record for record in session.run.records() if "expert_violation_by_layer" in record]
    assert [len(record["expert_violation_by_layer"]) for record in steps] == [2] * 4
    assert [max(r["expert_violation_by_layer"]) for r in steps] == [r["expert_max_violation"] for r in steps]
    loads = [record["expert_load_by_layer"] for record in session.run.records() if "expert_load_by_layer" in record]
    assert len(loads) == 2
    for load in loads:
        assert [sum(layer) for layer in load] == pytest.approx([1, 1])
        assert [len(layer) for layer in load] == [4, 4]
    events = EventAccumulator(str(session.run.folder / "tensorboard")).Reload()
    tracked = [event.value for event in events.Scalars("expert_violation_by_layer/1")]
    assert tracked == pytest.approx([record["expert_violation_by_layer"][1] for record in steps])
    assert [event.value for event in events.Scalars("expert_load_by_layer/0/3")] == pytest.approx(
        [load[0][3] for load in loads]
    )


@pytest.fixture
def config_file(tmp_path):
    config = small_config(write_corpus(tmp_path / "corpus"), steps=4, evaluate_every=0, sample_every=0)
    config_files.save(config, tmp_path / "config.yaml")
    return str(tmp_path / "config.yaml")


def test_a_dry_run_says_what_would_be_and_writes_nothing(config_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["train", "--config", config_file, "--dry_run"]) == 0
    said = capsys.readouterr().out
    for part in (
        "parameters",
        "4 steps of 64 tokens: 256 in all",
        "first batch 4 rows",
        "s per step",
        "optimizer",
    ):
        assert part in said
    assert list((tmp_path / "here").iterdir()) == []


def test_one_batch_is_memorized(config_file, capsys):
    command = ["train", "--config", config_file, "--overfit_one_batch", "--training.learning_rate", "2e-2"]
    assert main([*command, "--training.steps", "500"]) == 0
    assert "memorized" in capsys.readouterr().out
    assert main([*command, "--training.steps", "3"]) == 2
    assert "not memorized" in capsys.readouterr().err


def test_a_sweep_trains_each_combination_once_and_compares_them(config_file, tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text("training.learning_rate: [1e-4, 1e-2]\nmodel.width: [16, 32]\n")
    command = ["sweep", str(grid), "--config", config_file, "--out", str(tmp_path / "sweep")]
    assert main(command) == 0
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    found = {(r["settings"]["training.learning_rate"], r["settings"]["model.width"]) for r in results}
    assert found == {(1e-4, 16), (1e-4, 32), (1e-2, 16), (1e-2, 32)}
    assert [r["loss"] for r in results] == sorted(r["loss"] for r in results)
    assert results[0]["settings"]["training.learning_rate"] == 1e-2
    for name in ("table.txt", "losses.png", "learning_rate.png", "width.png"):
        assert (tmp_path / "sweep" / name).stat().st_size > 100
    logs = {path: path.read_text() for path in tmp_path.rglob("log.jsonl")}
    capsys.readouterr()
    assert main(command) == 0  # all done already: nothing is trained again
    assert {path: path.read_text() for path in tmp_path.rglob("log.jsonl")} == logs
    assert "step 1/" not in capsys.readouterr().out
    assert main([*command, "--training.steps", "3"]) == 2
    assert "holds a sweep of other settings: training.steps is" in capsys.readouterr().err


def test_every_task_can_be_swept(tmp_path, capsys):
    config_files.save(labels_config(write_labels(tmp_path / "a.tsv"), steps=2), tmp_path / "config.yaml")
    (tmp_path / "grid.yaml").write_text("data.max_tokens: [8, 16]\n")
    out = tmp_path / "sweep"
    command = ["sweep", str(tmp_path / "grid.yaml"), "--task", "classify", "--config", str(tmp_path / "config.yaml")]
    assert main([*command, "--out", str(out), "--class_weights", "bad", "2"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert {result["settings"]["data.max_tokens"] for result in results} == {8, 16}
    assert all(0 <= result["accuracy"] <= 1 for result in results)
    assert "macro f1" in capsys.readouterr().out
    assert main(["compare", *(result["folder"] for result in results)]) == 0
    assert capsys.readouterr().out.count("classify") == 2
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path / "x"), "--data.packing", "stream"])  # a setting of llmfast train


def test_a_sweep_goes_on_after_a_run_that_diverged(config_file, tmp_path, capsys):
    """Trap: the first learning rate that is too high ends the comparison of learning rates."""
    grid = tmp_path / "grid.yaml"
    grid.write_text("training.learning_rate: [1e12, 1e-2]\n")
    assert main(["sweep", str(grid), "--config", config_file, "--out", str(tmp_path / "sweep")]) == 0
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [r["settings"]["training.learning_rate"] for r in results] == [1e-2, 1e12]
    assert [r["loss"] is None for r in results] == [False, True]
    assert "diverged" in capsys.readouterr().out


def test_a_sweep_under_torchrun_is_refused(config_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without torchrun"):
        sweep(tmp_path / "grid.yaml", out=tmp_path / "sweep")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("training.lerning_rate: [1]", "training.lerning_rate is not a setting; did you mean learning_rate?"),
        ("training.learning_rate: [-1.0]", "training.learning_rate must be a positive number"),
        ("training.learning_rate: 1.0", "is not a grid"),
        ("[training.learning_rate]", "is not a grid"),
        ("size: {small: 16}", "is not a grid"),
        ("size: {small: {model.widht: 16}}", "model.widht is not a setting; did you mean width?"),
        ("model.width: [16]\nsize: {small: {model.width: 16}}", "the grid sets model.width twice"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_is_trained(grid, message, config_file, tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text(grid)
    out = tmp_path / "sweep"
    assert main(["sweep", str(tmp_path / "grid.yaml"), "--config", config_file, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_settings_change_together_under_a_name(config_file, tmp_path):
    """Trap: a ladder of sizes that becomes all combinations of widths and depths."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "size: {wide: {model.width: 32, model.layers: 1}, deep: {model.width: 16, model.layers: 2}}\n"
        "training.seed: [0, 1]\n"
    )
    assert main(["sweep", str(grid), "--config", config_file, "--out", str(tmp_path / "sweep")]) == 0
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert sorted((r["settings"]["size"], r["settings"]["training.seed"]) for r in results) == [
        ("deep", 0), ("deep", 1), ("wide", 0), ("wide", 1)
    ]  # fmt: skip
    for result in results:
        model = config_files.load(RunConfig, Path(result["folder"]) / "config.yaml").model
        assert (model.width, model.layers) == {"wide": (32, 1), "deep": (16, 2)}[result["settings"]["size"]]
        assert result["flops_per_token"] == model.flops_per_token()


def test_derived_settings_follow_in_a_sweep(tmp_path):
    config = small_config(tmp_path)
    runs = combinations({"model.width": [16, 64]}, config)
    assert [each.model.head_width for _, each in runs] == [8, 32]
