"""DPO and reward models on the step loop: references, parts of batches, processes and resumed runs."""

import dataclasses
import json
import math
from typing import get_args

import numpy as np
import pytest
import torch
from ranks import run_ranks
from small_pairs import TASKS, losses_of_ranks, new_pairs_run, pairs_config, pairs_trainer

from llmfast import config as config_files
from llmfast.alignment.config import PairLossName
from llmfast.alignment.losses.preference import OF_THE_BATCH, PAIR_LOSSES, WITHOUT_REFERENCE
from llmfast.alignment.reference import by_start
from llmfast.alignment.reward_model import rewards_of
from llmfast.cli import main
from llmfast.data.batch import IGNORED
from llmfast.training.loop import fit, save
from llmfast.training.session import new_session, resumed_session

LOG_2 = pytest.approx(math.log(2), abs=1e-6)


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("adapter", ["none", "lora", "qlora"])
def test_the_commands_train_with_and_without_adapters(tmp_path, capsys, kind, adapter):
    config = pairs_config(tmp_path, kind, adapter=adapter, steps=12)
    config_files.save(config, tmp_path / "config.yaml")
    run = tmp_path / "run"
    assert main([kind, "--config", str(tmp_path / "config.yaml"), "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "of held-out pairs" in said
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first = next(record for record in records if "margin" in record)
    assert first["loss"] == LOG_2
    assert first["margin"] == pytest.approx(0, abs=1e-6)
    assert {"accuracy", "validation_accuracy", "validation_margin"} <= set().union(*records)
    assert main([kind, "--resume", str(run)]) == 0
    if kind == "dpo":
        capsys.readouterr()
        assert main(["generate", str(run), "--chat", "Say red", "--greedy", "--tokens", "3"]) == 0


@pytest.mark.parametrize("kind", TASKS)
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, kind):
    session = new_pairs_run(tmp_path, kind)
    for _ in range(3):
        session.trainer.step()
    save(session)
    rest = [float(session.trainer.step().loss) for _ in range(4)]
    resumed = resumed_session(session.run.folder, task=TASKS[kind][0]).trainer
    assert [float(resumed.step().loss) for _ in range(4)] == rest
    assert torch.equal(weights(resumed), weights(session.trainer))


def test_a_resumed_run_without_its_reference_says_so(tmp_path):
    """Trap: a reference that is computed again, from the trained weights."""
    session = new_pairs_run(tmp_path)
    session.trainer.step()
    save(session)
    (session.run.data / "reference.safetensors").unlink()
    with pytest.raises(ValueError, match="reference's log-probabilities is missing"):
        resumed_session(session.run.folder, task=TASKS["dpo"][0])


@pytest.mark.parametrize("reference", ["adapter", "copy"])
def test_references_agree_wherever_they_come_from(tmp_path, reference):
    settings = {"adapter": "lora", "steps": 5}
    plain = new_pairs_run(tmp_path / "a", **settings).trainer
    same = new_pairs_run_like(tmp_path / "a", tmp_path / "b", reference=reference, **settings)
    for _ in range(5):
        assert float(same.trainer.step().loss) == pytest.approx(float(plain.step().loss), rel=1e-5)
    save(same)
    resumed = resumed_session(same.run.folder, task=TASKS["dpo"][0]).trainer
    assert float(resumed.step().loss) == float(same.trainer.step().loss)


def new_pairs_run_like(old, new, **settings):
    """A run from the same weights and pairs as one in another folder."""
    new.mkdir()
    for name in ("start", "pairs.jsonl"):
        (new / name).symlink_to(old / name)
    return new_pairs_run(new, **settings)


@pytest.mark.parametrize("reference", ["precompute", "copy"])
def test_the_reference_has_no_dropout(tmp_path, reference):
    """Trap: dropout on in the reference, which makes it another model at every step."""
    config = pairs_config(tmp_path, reference=reference)
    config.model = dataclasses.replace(config.model, dropout=0.5)
    session = new_session(tmp_path / "run", config, task=TASKS["dpo"][0], report=lambda line: None)
    assert session.trainer.model.config.dropout == 0.5
    split = session.task.splits["train"]
    batch = split.batch(np.arange(4))
    again = split.batch(np.arange(4))
    assert torch.equal(batch.reference, again.reference)
    torch.testing.assert_close(by_start(session.trainer)(batch), batch.reference, rtol=1e-5, atol=1e-5)
    assert session.trainer.model.training
    # The policy has it: its loss is not the one without.
    assert float(session.trainer.step().loss) != LOG_2


def test_log_probabilities_are_those_of_the_answers_tokens(tmp_path):
    """Trap: a log-probability shifted by one, or one that counts the prompt."""
    session = new_pairs_run(tmp_path)
    task, model = session.task, session.trainer.model.eval()
    batch = task.splits["train"].batch(np.arange(3))
    for row in range(3):
        for side in range(2):
            prompt, answer = task.prepared.train.tokens(row, side)
            with torch.no_grad():
                log_p = model(torch.tensor([prompt + answer])).log_softmax(-1)[0]
            wanted = sum(float(log_p[len(prompt) - 1 + n, token]) for n, token in enumerate(answer))
            assert float(batch.reference[row, side]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", TASKS)
def test_a_batch_in_parts_trains_like_the_whole(tmp_path, kind):
    """8 × 1 = 1 × 8: the weights after 50 steps, with padding that depends on who shares a part."""
    session = new_pairs_run(tmp_path, kind, steps=50, batch_size=8, learning_rate=1e-3, evaluate_every=0)
    ends = []
    for accumulate in (1, 8):
        trainer = pairs_trainer(session, accumulate=accumulate)
        for _ in range(50):
            trainer.step()
        ends.append(weights(trainer))
    assert float((ends[0] - ends[1]).abs().max()) <= 1e-6


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_train_like_one(tmp_path, kind):
    session = new_pairs_run(tmp_path, kind)
    alone = losses_of_ranks(session.trainer.world, kind, session.config, session.run.data, 3)
    both = run_ranks(losses_of_ranks, 2, kind, session.config, session.run.data, 3)
    assert both[0] == both[1]
    assert both[0] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_every_loss_prefers_the_chosen_answer(tmp_path, name):
    """Each decreases what it says it does, on the batch that it is trained on."""
    settings = {"smoothing": 0.1} if name == "exo" else {}
    session = new_pairs_run(tmp_path, losses={name: 1.0}, batch_size=16, learning_rate=3e-3, beta=0.5, **settings)
    trainer, losses, margins = session.trainer, [], []
    beginning = trainer.source.state()
    for _ in range(25):
        result = trainer.step()
        trainer.source.restore(beginning)
        losses.append(float(result.loss))
        margins.append(result.figures["margin"])
    assert min(losses[-5:]) < losses[0]
    if name not in ("sft", "apo_down"):
        assert margins[-1] > margins[0]
    assert math.isfinite(trainer.evaluate()["loss"])
    has_reference = "reference" in trainer.source.next(4).columns
    assert has_reference == (name not in WITHOUT_REFERENCE)


def test_losses_are_mixed_by_their_weights(tmp_path):
    both = new_pairs_run(tmp_path, losses={"sigmoid": 0.7, "sft": 0.3}).trainer.step()
    chosen = both.figures["chosen_log_probability"]
    assert float(both.loss) == pytest.approx(0.7 * math.log(2) - 0.3 * chosen, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"losses": {}}, "losses is empty"),
        ({"losses": {"exo": 1.0}}, "exo needs a smoothing"),
        ({"losses": {"aot": 1.0}, "accumulate": 2}, "compares the pairs of a batch with one another"),
        ({"beta": -1.0}, "beta must be positive"),
        ({"reference": "adapter"}, "reference adapter needs adapter lora or qlora"),
        ({"data": {"max_tokens": 500}}, "is more than the model's context"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        new_pairs_run(tmp_path, **settings)
    assert not (tmp_path / "run").exists()


def test_every_loss_has_its_name_in_the_configuration():
    assert set(get_args(PairLossName)) == PAIR_LOSSES.keys() >= OF_THE_BATCH


def test_the_reward_is_read_after_the_answer_and_not_at_padding(tmp_path):
    """Trap: a reward that changes with the padding of a batch, or that never saw the end of the answer."""
    session = new_pairs_run(tmp_path, "reward", steps=4)
    fit(session)
    model, split = session.trainer.model.eval(), session.task.prepared.validation
    with torch.no_grad():
        together = rewards_of(model, split.batch(np.arange(3)))[0]
        for row in range(3):
            for side in range(2):
                prompt, answer = split.tokens(row, side)
                ids = torch.tensor([prompt + answer])
                alone = model(ids, torch.tensor([ids.shape[1]])).logits.item()
                assert float(together[row, side]) == pytest.approx(alone, abs=1e-5)
                other = ids.clone()
                other[0, -1] = answer[0]
                assert model(other, torch.tensor([ids.shape[1]])).logits.item() != pytest.approx(alone, abs=1e-6)
    assert (split.batch(np.arange(3)).targets == IGNORED).any()
