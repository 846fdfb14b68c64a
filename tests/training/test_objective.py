"""The seam between the step loop and what is trained: weights, figures, frozen parameters, sources with a state."""

import json

import pytest
import torch
from ranks import run_ranks
from small_run import new_run
from toy_policy import ToyPolicy, toy_steps, toy_trainer, train_toy

from llmfast.models.tensors import trained_tensors
from llmfast.training.checkpoints.checkpoint import read_checkpoint
from llmfast.training.loop import fit, save
from llmfast.training.optimizers.muon import Muon
from llmfast.training.run_folder import RunFolder
from llmfast.training.session import Session, resumed_session

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def session(folder, trainer):
    return Session(RunFolder(folder), trainer.task, trainer)


def test_a_batch_in_parts_counts_by_what_the_objective_counts():
    """Traps: rows with few counted tokens weigh as much as others; figures that are means of means."""
    whole, parts = toy_trainer(), toy_trainer(accumulate=4)
    a, b = whole.step(), parts.step()
    torch.testing.assert_close(b.loss, a.loss, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(b.gradient_norm, a.gradient_norm, rtol=1e-5, atol=0)
    assert a.figures.keys() == {"log_probability", "reward", "log_probability_max"}
    assert b.figures == pytest.approx(a.figures, rel=1e-5)


@pytest.mark.xdist_group("distributed")
def test_two_processes_have_the_losses_and_figures_of_one():
    (alone, both) = toy_steps(toy_trainer(accumulate=4), 4), run_ranks(train_toy, 2)
    assert both[0] == both[1]
    for (loss, figures), (one, alone_figures) in zip(both[0], alone, strict=True):
        assert loss == pytest.approx(one, rel=1e-4)
        assert figures == pytest.approx(alone_figures, rel=1e-4)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_source_that_samples_from_the_model_resumes_to_the_bit(tmp_path, stop):
    """Trap: rollouts of an older policy that are sampled again, from the newer one, when a run resumes among them."""
    whole = toy_trainer()
    toy_steps(whole, stop)
    folder = save(session(tmp_path, whole))
    rest = toy_steps(whole, 4)
    resumed = toy_trainer()
    resumed.restore(read_checkpoint(folder))
    assert toy_steps(resumed, 4) == rest
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
def test_frozen_parameters_are_in_no_optimizer_and_no_checkpoint(tmp_path, optimizer):
    """Traps: weight decay on what was to stay as it is; a checkpoint that copies the base."""
    trainer = toy_trainer("attention.out", optimizer=optimizer, weight_decay=0.5)
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
    toy_steps(trainer, 3)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("attention.out" not in name), name
        assert (parameter.grad is None) or "attention.out" in name
    optimized = [p for each in trainer.optimizers for group in each.param_groups for p in group["params"]]
    assert all(parameter.requires_grad for parameter in optimized)
    assert any(isinstance(each, Muon) for each in trainer.optimizers) == (optimizer == "muon")
    checkpoint = read_checkpoint(save(session(tmp_path, trainer)))
    assert list(checkpoint.model) == ["blocks.0.attention.out.weight"]
    assert {name.partition("/")[0] for name in checkpoint.optimizer} == {"blocks.0.attention.out.weight"}
    assert checkpoint.state["base"].keys() == {"path", "sha256", "quantized", "lora"}


def test_a_checkpoint_goes_with_its_base_alone(tmp_path):
    """Trap: what was trained on one base, loaded onto another, which nothing would show."""
    trainer = toy_trainer("attention.out")
    checkpoint = read_checkpoint(save(session(tmp_path, trainer)))
    toy_trainer("attention.out").restore(checkpoint)
    other = toy_trainer("attention.out")
    other.model.norm.weight.data[0] = 2.0
    rebuilt = ToyPolicy(other.task.config, "attention.out")
    rebuilt.objective = lambda: other.objective
    from llmfast.training.trainer import Trainer

    with pytest.raises(ValueError, match=r"was trained on the base .*somewhere .* but here the base is "):
        Trainer(rebuilt, other.training).restore(checkpoint)
    with pytest.raises(ValueError, match="holds only what was trained on the base"):
        toy_trainer().restore(checkpoint)
    whole = read_checkpoint(save(session(tmp_path / "whole", toy_trainer())))
    with pytest.raises(ValueError, match="holds a whole model"):
        toy_trainer("attention.out").restore(whole)


def test_a_model_without_a_trained_parameter_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        toy_trainer("no such name")


def test_what_a_spike_is_is_the_word_of_the_objective():
    """Trap: a loss that may be negative is below any multiple of itself."""
    trainer = toy_trainer(spike=1.5)
    trainer.guard.losses = [-1.0] * 30
    assert trainer.guard.fault(-1.4, 1.0) is None
    assert "times the median" in trainer.guard.fault(-2.0, 1.0)


def test_figures_are_logged_tracked_shown_and_drawn(tmp_path, capsys):
    run = session(tmp_path / "run", toy_trainer(steps=4, sample_every=0))
    run.run.folder.mkdir()
    fit(run)
    records = run.run.records()
    assert [record["step"] for record in records if "reward" in record] == [1, 2, 3, 4]
    assert "log probability max" in capsys.readouterr().out
    from llmfast.visualization.curves import plot_losses

    plot_losses(records, tmp_path / "loss.png")
    plain = tmp_path / "plain.png"
    plot_losses([{"step": r["step"], "loss": r["loss"]} for r in records], plain)
    assert (tmp_path / "loss.png").stat().st_size > plain.stat().st_size > 1000


def test_the_load_of_experts_is_drawn_by_layer(tmp_path):
    """Two layers of three experts, at steps that log the one or the other."""
    from llmfast.visualization.curves import plot_losses

    violation, load = "expert_violation_by_layer", "expert_load_by_layer"
    records = [{"step": step, "loss": 1.0, violation: [0.2, 1.5]} for step in range(1, 5)]
    records += [{"step": step, "validation_loss": 1.0, load: [[0.4, 0.3, 0.3], [0.8, 0.2, 0.0]]} for step in (2, 4)]
    plot_losses(records, tmp_path / "loss.svg")
    drawn = (tmp_path / "loss.svg").read_text("utf-8")
    assert "imbalance of experts by layer" in drawn
    assert "load over an equal share" in drawn


def test_checkpoints_of_earlier_versions_resume(tmp_path):
    """They have the place in the data at the top of their state, and know of no base."""
    made = new_run(tmp_path, steps=8)
    for _ in range(3):
        made.trainer.step()
    folder = save(made)
    rest = [float(made.trainer.step().loss) for _ in range(3)]
    state = json.loads((folder / "state.json").read_text())
    state["position"] = state.pop("source")["position"]
    del state["base"], state["checksum"]
    (folder / "state.json").write_text(json.dumps(state))
    resumed = resumed_session(made.run.folder).trainer
    assert [float(resumed.step().loss) for _ in range(3)] == rest
    assert trained_tensors(resumed.model).keys() == read_checkpoint(folder).model.keys()
