"""Policies on the step loop: parts, processes and resumed runs, what counts, and what people watch."""

import contextlib
import dataclasses
import json
import multiprocessing
import time

import pytest
import torch
from ranks import run_ranks
from small_policy import TASKS, figures_of_ranks, new_policy_run, policy_config, policy_trainer, sorter

from llmfast import config as config_files
from llmfast.alignment.losses.advantages import generalized_advantages
from llmfast.alignment.rewards import build
from llmfast.cli import main
from llmfast.data.batch import IGNORED
from llmfast.models.folder import checkpoints, load_model
from llmfast.training.checkpoints.checkpoint import read_checkpoint
from llmfast.training.loop import save
from llmfast.training.session import resumed_session

pytestmark = pytest.mark.xdist_group("sorter")  # made once


def start():
    return sorter(digits=3, steps=60, width=32, layers=1)


def run(folder, kind="grpo", /, **settings):
    return new_policy_run(folder, kind, start(), **settings)


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


REUSED = {"rollouts": {"minibatches": 2, "epochs": 2}}
KL = {"kl": 0.1}


@pytest.mark.parametrize("stop", [3, 4])
@pytest.mark.parametrize("kind", TASKS)
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, kind, stop):
    """Also among the steps that share rollouts, which cannot be sampled again once the policy has changed."""
    session = run(tmp_path, kind, **REUSED, **KL)
    for _ in range(stop):
        session.trainer.step()
    save(session)
    rest = [session.trainer.step() for _ in range(4)]
    resumed = resumed_session(session.run.folder, task=TASKS[kind][0]).trainer
    again = [resumed.step() for _ in range(4)]
    assert [float(each.loss) for each in again] == [float(each.loss) for each in rest]
    assert [each.figures for each in again] == [each.figures for each in rest]
    assert torch.equal(weights(resumed), weights(session.trainer))


def test_a_run_that_is_killed_ten_times_ends_with_the_same_bits(tmp_path, monkeypatch):
    """SIGKILL at other moments each time, also with rollouts in use; the command resumes by itself."""
    settings = {"steps": 24, "checkpoint_every": 1, "keep_last": 3, "keep_best": False}
    rollouts = {"minibatches": 2, "epochs": 2, "max_tokens": 8}
    config = policy_config("grpo", sorter(steps=10, width=16, layers=1), rollouts=rollouts, training=settings)
    config_files.save(config, tmp_path / "config.yaml")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Processes that a server forks, which has imported everything: each begins in a moment.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["llmfast.cli", "llmfast.commands.alignment", "llmfast.alignment.policy.task", "llmfast.visualization.curves"]
    )

    def begin(folder):
        command = ["grpo", "--config", str(tmp_path / "config.yaml"), "--out", str(folder), "--resume", "auto"]
        process = context.Process(target=main, args=(command,))
        process.start()
        return process

    def finish(folder):
        process = begin(folder)
        process.join()
        assert process.exitcode == 0

    finish(tmp_path / "whole")
    killed = tmp_path / "killed"
    for kill in range(10):
        before = len(checkpoints(killed)) and checkpoints(killed)[-1].name
        process, deadline = begin(killed), time.monotonic() + 120
        while process.is_alive() and (len(checkpoints(killed)) and checkpoints(killed)[-1].name) == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.01 * (kill % 4))
        assert process.is_alive()
        process.kill()
        process.join()
    finish(killed)
    a, b = (read_checkpoint(tmp_path / name / "checkpoints" / "step-000024") for name in ("whole", "killed"))
    assert a.model.keys() == b.model.keys()
    assert all(torch.equal(a.model[name], b.model[name]) for name in a.model)
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (killed / "log.jsonl").read_text()


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce"])
def test_a_batch_in_parts_trains_like_the_whole(tmp_path, method):
    """Trap: accumulation that changes GRPO. 16 × 1 = 1 × 16, on answers of many lengths."""
    session = run(tmp_path, method=method, **REUSED, **KL)
    ends = []
    for accumulate in (1, 16):
        trainer = policy_trainer(session, accumulate=accumulate, learning_rate=1e-4)
        steps = [trainer.step() for _ in range(4)]
        ends.append((weights(trainer), [step.figures["reward"] for step in steps]))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-6)
    assert float((ends[0][0] - ends[1][0]).abs().max()) <= 1e-6


def test_fifty_steps_in_parts_end_with_the_same_weights(tmp_path):
    settings = {"rewards": {"position_match": 1.0}, "rollouts": {"batch_invariant": True}}
    session = run(tmp_path, **settings, training={"steps": 50, "batch_size": 8})
    ends = []
    for accumulate in (1, 8):
        trainer = policy_trainer(session, accumulate=accumulate, learning_rate=1e-5)
        for _ in range(50):
            trainer.step()
        ends.append(weights(trainer))
    assert float((ends[0] - ends[1]).abs().max()) <= 1e-6


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_sample_and_train_like_one(tmp_path, kind):
    session = run(tmp_path, kind, **REUSED, **KL)
    alone = figures_of_ranks(session.trainer.world, kind, session.config, session.run.data, 3)
    both = run_ranks(figures_of_ranks, 2, kind, session.config, session.run.data, 3)
    assert both[0] == both[1]
    for (loss, reward), (own_loss, own_reward) in zip(both[0][0], alone[0], strict=True):
        assert reward == pytest.approx(own_reward, rel=1e-6)
        assert loss == pytest.approx(own_loss, rel=1e-3, abs=1e-6)
    assert both[0][1] == pytest.approx(alone[1])


@pytest.mark.parametrize("rollouts", [{}, {"temperature": 0.7, "top_p": 0.8}, {"top_k": 5}])
@pytest.mark.parametrize("kind", TASKS)
def test_before_an_update_every_ratio_is_exactly_1(tmp_path, kind, rollouts):
    """float32 on a CPU, batch-invariant: the largest |log ratio| of the first step on fresh answers is 0."""
    session = run(tmp_path, kind, rollouts={"batch_invariant": True, "epochs": 2} | rollouts)
    first, second = session.trainer.step(), session.trainer.step()
    assert first.figures["sampler_gap"] == 0.0
    assert first.figures["policy_kl"] == 0.0
    assert second.figures["policy_kl"] > 0
    plain = run(tmp_path / "plain", kind, rollouts=rollouts)
    assert plain.trainer.step().figures["sampler_gap"] < 1e-4


def test_a_gap_between_sampler_and_trainer_is_shown(tmp_path):
    """Trap: a ratio that drifts under bfloat16, unseen."""
    session = run(tmp_path, training={"precision": "bfloat16"})
    session.trainer.source.sample.policy = Unrounded(session.trainer)
    assert session.trainer.step().figures["sampler_gap"] > 1e-4


class Unrounded:
    """The policy in float32, whatever the run computes in."""

    def __init__(self, policy):
        self.policy = policy

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def autocast(self):
        return contextlib.nullcontext()


# --- what counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("equal_groups", "moves"), [("drop", False), ("keep", True)])
def test_groups_of_equal_reward_pay_no_kl(tmp_path, equal_groups, moves):
    """Trap: answers without a signal whose KL pulls the policy about."""
    settings = {"rewards": {"regex:nothing": 1.0}, "equal_groups": equal_groups, "training": {"weight_decay": 0.0}}
    session = run(tmp_path, **KL, **settings)
    trainer = session.trainer
    with torch.no_grad():  # away from the reference, so that there is a KL
        trainer.model.norm.weight.mul_(1.5)
    before = weights(trainer).clone()
    result = trainer.step()
    assert result.figures["no_signal"] == 1.0
    assert result.fault is None
    assert (float(result.loss) != 0) == moves
    assert (not torch.equal(weights(trainer), before)) == moves


def test_truncated_answers_are_left_out_if_asked_for(tmp_path):
    session = run(tmp_path, truncated="drop", rollouts={"max_tokens": 2}, rewards={"position_match": 1.0})
    batch = session.trainer.source.next(16)
    is_cut = batch.is_truncated.bool()
    assert is_cut.any()
    assert not batch.counted[is_cut].any()
    assert (batch.length <= 2).all()


def test_a_failed_reward_ends_the_run_or_leaves_the_answer_out(tmp_path, monkeypatch):
    monkeypatch.setitem(build.BY_NAME, "fussy", lambda prompt, tokens, text, answer: 1 / (len(tokens) % 2))
    session = run(tmp_path, rewards={"fussy": 1.0})
    with pytest.raises(
        ValueError, match=r"the reward fussy raised ZeroDivisionError .* for sample \d of .*tasks\.jsonl:"
    ):
        session.trainer.step()
    batch = run(tmp_path / "skip", rewards={"fussy": 1.0}, on_bad_reward="skip").trainer.source.next(16)
    skipped = batch.is_skipped.bool()
    assert skipped.any()
    assert not batch.counted[skipped].any()


@pytest.mark.parametrize("bootstrap", [False, True])
def test_the_reward_of_an_answer_is_that_of_its_last_token(tmp_path, bootstrap):
    """Traps: a reward read at padding; a cut answer that is worth more than a wrong one, which teaches not to end; and,
    with bootstrap, an answer cut short that is taken for one that ended."""
    session = run(
        tmp_path, "ppo", whiten=False, bootstrap=bootstrap, gae=0.9, gamma=0.99, rewards={"position_match": 1.0}
    )
    trainer = session.trainer
    with torch.no_grad():
        trainer.model.value_head.bias.fill_(0.3)
    batch = trainer.source.next(16)
    sampled = batch.targets != IGNORED
    assert batch.is_truncated.any()
    for row in range(16):
        places = sampled[row].nonzero().flatten()
        rewards = torch.zeros(1, len(places), dtype=torch.float64)
        rewards[0, -1] = float(batch.reward[row])
        values = torch.full((1, len(places)), 0.3, dtype=torch.float64)
        after = torch.tensor([0.3 if bootstrap and batch.is_truncated[row] else 0.0], dtype=torch.float64)
        wanted = generalized_advantages(
            rewards, values, torch.ones_like(rewards), gamma=0.99, decay=0.9, bootstrap=after
        )
        torch.testing.assert_close(batch.advantages[row, places].double(), wanted.advantages[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(batch.returns[row, places].double(), wanted.returns[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "kl_in"), [("grpo", "loss"), ("grpo", "reward"), ("ppo", "reward")])
def test_a_kl_holds_the_policy_to_its_start(tmp_path, kind, kl_in):
    """In the reward as in the loss: with nothing else to learn, it returns."""
    settings = {"rewards": {"regex:nothing": 1.0}, "kl": 1.0, "kl_in": kl_in}
    if kind == "grpo":
        settings |= {"equal_groups": "keep", "method": "rloo"}
    else:
        settings["value_weight"] = 0.1
    session = run(tmp_path, kind, **settings, training={"batch_size": 64, "learning_rate": 2e-3})
    trainer = session.trainer
    with torch.no_grad():
        trainer.model.norm.weight.mul_(2.5)
    kls = [trainer.step().figures["kl"] for _ in range(50)]
    assert sum(kls[-10:]) < 0.8 * sum(kls[:10])


def test_an_entropy_bonus_raises_the_entropy(tmp_path):
    settings = {"rewards": {"regex:nothing": 1.0}, "equal_groups": "keep", "entropy": 1.0}
    trainer = run(tmp_path, **settings, training={"learning_rate": 3e-3}).trainer
    entropies = [trainer.step().figures["entropy"] for _ in range(20)]
    assert entropies[-1] > entropies[0] + 0.05


def test_importance_is_corrected_and_capped(tmp_path):
    trainer = run(tmp_path, importance_cap=1.5).trainer
    sampler = trainer.source.sample
    sampler.sampling = dataclasses.replace(sampler.sampling, temperature=3.0)  # which training knows nothing of
    batch = trainer.source.next(16)
    sampled = batch.targets != IGNORED
    assert float(batch.importance[sampled].max()) == 1.5
    assert float(batch.importance[sampled].min()) < 1
    assert trainer.step().fault is None


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "adapter"), [("grpo", "none"), ("grpo", "qlora"), ("ppo", "none"), ("ppo", "lora")])
def test_the_commands_train_show_their_figures_and_leave_a_model(tmp_path, capsys, kind, adapter):
    settings = {"steps": 4, "evaluate_every": 2, "sample_every": 2}
    reference = "copy" if adapter == "none" else "adapter"
    config = policy_config(
        kind, start(), training=settings, adapter=adapter, evaluation_samples=3, kl=0.1, reference=reference
    )
    config_files.save(config, tmp_path / "config.yaml")
    folder = tmp_path / "run"
    assert main([kind, "--config", str(tmp_path / "config.yaml"), "--out", str(folder)]) == 0
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figures = next(record for record in records if "reward" in record)
    assert figures.keys() >= {
        "reward", "length", "truncated", "no_signal", "clipped", "sampler_gap", "kl", "policy_kl",
        "negative_log_probability",
    }  # fmt: skip
    assert any({"validation_reward", "validation_pass@3", "validation_maj@3"} <= record.keys() for record in records)
    assert "validation  reward" in capsys.readouterr().out
    assert main([kind, "--resume", str(folder)]) == 0
    assert main(["generate", str(folder), "--chat", "31", "--greedy", "--tokens", "3"]) == 0
    if adapter == "none":
        assert not any("value" in name for name in load_model(folder)[0].state_dict())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": None}, "grpo needs start"),
        ({"rewards": {"exakt": 1.0}}, "'exakt' is neither one of exact"),
        ({"rewards": {"exact": 0.1, "think_format": 1.0}}, "rewards of form weigh"),
        ({"rollouts": {"samples": 1}}, "compares answers of a group"),
        ({"rollouts": {"samples": 3}}, "must be a multiple of rollouts.samples 3"),
        ({"rollouts": {"temperature": 0.0}}, "rollouts.temperature must be above 0"),
        ({"rollouts": {"max_tokens": 32}}, "leaves no room for a prompt"),
        ({"rollouts": {"max_tokens": 31}}, "4000 with prompts longer|4,000 with prompts longer"),
        ({"parallel": {"strategy": "fsdp"}}, "rollouts need parallel.strategy ddp"),
        ({"clip_dual": 0.5}, "clip_dual must be above 1"),
        ({"reference": "adapter"}, "reference adapter needs adapter"),
        ({"data": {"prompt": "question"}}, "data.prompt names the one with the prompt"),
        ({"data": {"answer": "solution"}}, "data.answer names the one with the answer"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path, **options)
    assert not (tmp_path / "run").exists()
