"""Bad steps: told, not taken, kept for study; float16's loss scale."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_run import new_run

from llmfast.models.folder import checkpoints
from llmfast.training.loop import fit, save
from llmfast.training.monitoring.guard import Guard, LossScaler
from llmfast.training.session import resumed_session


def scaled(loss, factor):
    return loss._replace(mean=loss.mean * factor)


def poison(trainer, steps, value=float("nan")):
    """Make the losses of these steps bad, as a broken batch would."""
    forward = trainer.forward

    def broken(batch):
        return scaled(forward(batch), value if trainer.steps_done in steps else 1.0)

    trainer.forward = broken


def records(run):
    return [json.loads(line) for line in run.log_file.read_text().splitlines()]


def parameters(trainer):
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_stops_the_run_before_it_touches_the_weights(tmp_path, value):
    session = new_run(tmp_path, steps=10, checkpoint_every=2, evaluate_every=0, sample_every=0)
    poison(session.trainer, {5}, value)
    with pytest.raises(ValueError, match=r"at step 6: a lower training\.learning_rate may help"):
        fit(session)
    assert all(parameter.isfinite().all() for parameter in parameters(session.trainer))
    assert checkpoints(session.run.folder)[-1].name == "step-000004"
    assert "fault" in records(session.run)[-1]


def test_a_bad_step_may_be_skipped_and_its_batch_is_kept(tmp_path):
    session = new_run(tmp_path, steps=8, on_bad_step="skip", evaluate_every=0, sample_every=0)
    poison(session.trainer, {2, 3})
    fit(session)
    assert [record["step"] for record in records(session.run) if "fault" in record] == [3, 4]
    assert [record["step"] for record in records(session.run) if "loss" in record] == [1, 2, 5, 6, 7, 8]
    (first, _) = sorted((session.run.folder / "bad-steps").iterdir())
    kept = load_file(first)
    session.trainer.source.position = 2 * 4
    expected = session.trainer.source.next(4)
    assert torch.equal(kept["tokens"], expected.tokens)
    assert torch.equal(kept["targets"], expected.targets)


def test_skipping_has_an_end(tmp_path):
    """Trap: a model whose weights are ruined skips every step until the money is gone."""
    session = new_run(tmp_path, steps=40, on_bad_step="skip", evaluate_every=0, sample_every=0)
    poison(session.trainer, set(range(5, 40)))
    with pytest.raises(ValueError, match="the loss is nan at step 16"):
        fit(session)


def test_a_step_skipped_changes_nothing_but_the_place_in_the_data(tmp_path):
    session = new_run(tmp_path, on_bad_step="skip")
    session.trainer.step()
    before, state = parameters(session.trainer), session.trainer.optimizer_tensors()
    state = {name: tensor.clone() for name, tensor in state.items()}
    poison(session.trainer, {1})
    assert session.trainer.step().fault == "the loss is nan"
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(session.trainer), strict=True))
    after = session.trainer.optimizer_tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert session.trainer.source.position == 8


def test_a_spike_is_told_from_the_losses_before_it():
    guard = Guard(1.5, lambda loss, usual, factor: loss > factor * usual)
    assert guard.fault(100.0, 1.0) is None  # the first steps of a run are high
    assert all(guard.fault(4.0, 1.0) is None for _ in range(30))
    assert guard.fault(5.9, 1.0) is None
    assert "over 1.5 times the median of the last steps, 4.000" in guard.fault(6.1, 1.0)
    assert guard.fault(4.0, float("inf")) == "the gradient norm is inf"


def test_spikes_are_remembered_across_a_resume(tmp_path):
    session = new_run(tmp_path, steps=60, spike=1.5, evaluate_every=0, sample_every=0)
    for _ in range(30):
        session.trainer.step()
    save(session)
    resumed = resumed_session(session.run.folder)
    assert resumed.trainer.guard.losses == session.trainer.guard.losses
    poison(resumed.trainer, {30}, 3.0)
    assert "times the median" in resumed.trainer.step().fault


def test_the_loss_scale_follows_torchs_rule():
    theirs = torch.amp.GradScaler("cpu")
    ours = LossScaler(True)
    parameter = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for step in range(4200):
        finite = step not in (3, 4, 2500)
        parameter.grad = torch.tensor(1.0 if finite else float("inf"))
        theirs.scale(parameter)
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite=finite)
        assert ours.scale == theirs.get_scale(), step


def test_a_scale_that_grows_leaves_the_gradient_of_its_step_alone(tmp_path):
    """Trap: a gradient divided by the scale of the next step, and not by that which its loss was multiplied by."""
    grows, same = (new_run(tmp_path / name, precision="float16", steps=9).trainer for name in ("grows", "same"))
    grows.scaler.good_steps = grows.scaler.INTERVAL - 1
    scale = grows.scaler.scale
    grows.step()
    same.step()
    assert grows.scaler.scale == 2 * scale
    assert same.scaler.scale == scale
    ours, theirs = grows.optimizer_tensors(), same.optimizer_tensors()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_float16_trains_and_halves_the_scale_when_it_overflows(tmp_path):
    session = new_run(tmp_path, precision="float16", steps=60, learning_rate=1e-2)
    trainer = session.trainer
    losses = [float(trainer.step().loss) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    scale, before = trainer.scaler.scale, parameters(trainer)
    forward = trainer.forward

    def overflowing(batch):
        loss = forward(batch)
        loss.mean.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    trainer.forward = overflowing
    result = trainer.step()
    assert result.fault is None  # not a bad step: overflow is what the scale is for
    assert result.scaling == {"loss_scale": scale, "overflow": 1.0}  # and the log says so
    assert trainer.scaler.scale == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(trainer), strict=True))
    trainer.forward = lambda batch: scaled(forward(batch), float("nan"))
    assert trainer.step().fault == "the loss is nan"  # which no scale helps
    folder = save(session)
    assert json.loads((folder / "state.json").read_text())["scaler"]["scale"] == scale / 2
    assert resumed_session(session.run.folder).trainer.scaler.scale == scale / 2
