"""The trainer: repeatable to the bit, resumable to the bit, the same for a batch in parts or whole."""

import dataclasses
import itertools
import math

import pytest
import torch
from small_run import new_run, small_config, trainer_of, write_corpus

from llmfast.data.loader import IGNORED
from llmfast.data.prepare import prepare
from llmfast.models.config import ExpertsConfig
from llmfast.models.folder import checkpoints, load_model
from llmfast.training.checkpoints.checkpoint import read_checkpoint
from llmfast.training.loop import save


def losses(trainer, steps):
    return [trainer.step().loss.item() for _ in range(steps)]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_losses(tmp_path, optimizer, precision):
    session = new_run(tmp_path, optimizer=optimizer, precision=precision)
    config = session.config
    prepared = session.task.prepared
    trainer = session.trainer
    first = losses(trainer, 6)
    assert losses(trainer_of(config, prepared), 6) == first
    config.training.seed = 1
    assert losses(trainer_of(config, prepared), 6) != first


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, optimizer):
    """Trap: optimizer state not saved, the data begun anew, the schedule restarted."""
    session = new_run(tmp_path, optimizer=optimizer, steps=12)
    config = session.config
    prepared = session.task.prepared
    trainer = session.trainer
    losses(trainer, 5)
    folder = save(session)
    rest = losses(trainer, 7)

    resumed = trainer_of(config, prepared)
    resumed.restore(read_checkpoint(folder))
    assert losses(resumed, 7) == rest
    for (name, a), b in zip(trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    """Trap: means of means; normalised by all targets of the batch, parts of any size add up to it."""
    session = new_run(tmp_path, batch_size=8)
    config = session.config
    prepared = session.task.prepared
    whole = session.trainer
    config.training.accumulate = 4
    parts = trainer_of(config, prepared)
    config.training.accumulate = 1
    expected = whole.step()
    config.training.accumulate = 4
    got = parts.step()
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(got.gradient_norm, expected.gradient_norm, rtol=1e-5, atol=0)


def test_measuring_the_speed_leaves_no_trace(tmp_path):
    session = new_run(tmp_path, optimizer="muon")
    config = session.config
    prepared = session.task.prepared
    trainer = session.trainer
    expected = losses(trainer_of(config, prepared), 4)
    assert trainer.seconds_per_step(steps=3) > 0
    assert losses(trainer, 4) == expected


def test_it_learns(tmp_path):
    session = new_run(tmp_path, steps=150, learning_rate=1e-2, optimizer="muon")
    trainer = session.trainer
    before = trainer.evaluate()
    losses(trainer, 150)
    after = trainer.evaluate()
    assert after["loss"] < 0.6 * before["loss"]
    assert after["bits_per_byte"] < 0.6 * before["bits_per_byte"]


def test_compiled_and_plain_agree(tmp_path):
    session = new_run(tmp_path)
    config = session.config
    prepared = session.task.prepared
    plain = session.trainer
    config.training.compile = True
    compiled = trainer_of(config, prepared)
    assert losses(compiled, 3) == pytest.approx(losses(plain, 3), rel=1e-4)
    folder = save(dataclasses.replace(session, trainer=compiled))
    # Trap: the compiler's prefix in the names of saved parameters.
    assert not any("_orig_mod" in name for name in read_checkpoint(folder).model)


def test_the_last_two_checkpoints_are_kept(tmp_path):
    session = new_run(tmp_path)
    run = session.run
    trainer = session.trainer
    for _ in range(4):
        trainer.step()
        save(session)
    assert [path.name for path in checkpoints(run.folder)] == ["step-000003", "step-000004"]


def test_a_checkpoint_alone_gives_back_model_and_tokenizer(tmp_path):
    session = new_run(tmp_path)
    config = session.config
    prepared = session.task.prepared
    trainer = session.trainer
    trainer.step()
    folder = save(session)
    moved = folder.rename(tmp_path / "elsewhere")
    model, tokenizer = load_model(moved)
    assert model.config == config.model
    assert tokenizer.fingerprint == prepared.tokenizer.fingerprint
    tokens = torch.arange(10)[None]
    assert torch.equal(model(tokens), trainer.model(tokens))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-4] ^= 0x80
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize(
    "damage", [truncate, flip, lambda path: path.unlink()], ids=["truncated", "flipped", "missing"]
)
def test_a_damaged_checkpoint_is_named(tmp_path, name, damage):
    session = new_run(tmp_path)
    folder = save(session)
    damage(folder / name)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read_checkpoint(folder)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    session = new_run(tmp_path)
    config = session.config
    prepared = session.task.prepared
    folder = save(session)
    config.model = dataclasses.replace(config.model, layers=2)
    with pytest.raises(ValueError, match="does not fit"):
        trainer_of(config, prepared).restore(read_checkpoint(folder))


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_with_masks_no_document_sees_another(tmp_path, packing):
    """Trap: packed rows in which the end of one document is context for the next."""
    session = new_run(tmp_path)
    config = session.config
    config.data.packing, config.data.document_masks = packing, True
    trainer = trainer_of(config, session.task.prepared)
    batch = trainer.source.next(256)
    assert len(batch.cu_seqlens) > 257  # some rows hold the end of one document and the start of another
    whole = trainer.forward(batch).mean
    tokens, targets = batch.tokens.flatten(), batch.targets.flatten()
    nats, count = 0.0, 0
    for begin, end in itertools.pairwise(batch.cu_seqlens.tolist()):
        wanted = int((targets[begin:end] != IGNORED).sum())
        if wanted:
            alone = trainer.model(tokens[None, begin:end], targets[None, begin:end])
            nats += alone.item() * wanted
        count += wanted
    assert whole.item() == pytest.approx(nats / count, rel=1e-5)
    assert trainer.step().fault is None


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({"batch_warmup": 0.5}, {}),
        ({"context_warmup": 0.5}, {}),
        ({"activation_checkpointing": "selective"}, {"dropout": 0.2}),
        ({}, {"experts": ExpertsConfig(count=4, active=2, bias_rate=0.01)}),
    ],
    ids=["batch", "context", "dropout", "experts"],
)
def test_all_that_changes_from_step_to_step_resumes_exactly(tmp_path, settings, model):
    """Trap: dropout that begins anew, router biases that are lost."""
    session = new_run(tmp_path, steps=12, batch_size=16, accumulate=2, **settings)
    config = session.config
    config.model = dataclasses.replace(config.model, **model)
    trainer = trainer_of(config, session.task.prepared)
    session = dataclasses.replace(session, trainer=trainer)
    losses(trainer, 3)
    folder = save(session)
    rest = losses(trainer, 9)
    resumed = trainer_of(trainer.task.config, session.task.prepared)
    resumed.restore(read_checkpoint(folder))
    assert losses(resumed, 9) == rest


@pytest.mark.parametrize("settings", [{}, {"model": {"dropout": 0.1}}], ids=["plain", "dropout"])
def test_experts_are_balanced_over_the_whole_batch(tmp_path, settings):
    """Trap: the load-balancing loss is a product of two means: that of a part is not its share of the whole batch's."""
    experts = ExpertsConfig(count=4, active=2, auxiliary_weight=0.1, z_loss_weight=0.01)
    config = small_config(write_corpus(tmp_path / "corpus"), batch_size=8, steps=12)
    config.model = dataclasses.replace(config.model, experts=experts, layers=2, **settings.get("model", {}))
    trained = {}
    for accumulate in (1, 4):
        config.training = dataclasses.replace(config.training, accumulate=accumulate)
        trainer = trainer_of(config, prepare(config.data, tmp_path / f"data-{accumulate}"))
        results = [trainer.step() for _ in range(12)]
        trained[accumulate] = results, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    (whole, weights), (parts, weights_of_parts) = trained[1], trained[4]
    if not settings:  # dropout draws other masks for rows in other parts
        for ours, theirs in zip(parts, whole, strict=True):
            assert float(ours.loss) == pytest.approx(float(theirs.loss), rel=1e-5)
            for name in ("load_balancing_loss", "router_z_loss", "expert_max_violation"):
                assert ours.figures[name] == pytest.approx(theirs.figures[name], rel=1e-5)
        assert max((weights_of_parts[name] - each).abs().max() for name, each in weights.items()) < 1e-5
    assert all(result.figures["load_balancing_loss"] > 0.09 for result in parts)  # 0.1 if all are used alike


def test_the_logged_loss_is_the_cross_entropy(tmp_path):
    """Trap: perplexity and bits per byte of a training loss that has balancing losses in it."""
    config = small_config(write_corpus(tmp_path / "corpus"))
    config.model = dataclasses.replace(config.model, experts=ExpertsConfig(count=4, active=2, auxiliary_weight=9.0))
    trainer = trainer_of(config, prepare(config.data, tmp_path / "data"))
    assert float(trainer.step().loss) < 1.1 * math.log(300)


def test_experts_are_balanced_and_watched(tmp_path):
    session = new_run(tmp_path)
    config = session.config
    config.model = dataclasses.replace(config.model, experts=ExpertsConfig(count=4, active=2, bias_rate=0.01))
    trainer = trainer_of(config, session.task.prepared)
    routing = trainer.step().figures
    assert routing["expert_max_violation"] >= 0
    assert routing["experts_unused"] >= 0
    assert trainer.model.blocks[0].feed_forward.router.bias.abs().max() > 0
    assert not trainer.model.expert_counts.any()  # counted anew for each step


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
def test_what_decays(tmp_path, optimizer):
    """Traps: experts, three-dimensional stacks of matrices, taken for no matrices; norms and embeddings that shrink."""
    session = new_run(tmp_path, optimizer=optimizer, weight_decay=0.3)
    config = session.config
    config.model = dataclasses.replace(config.model, experts=ExpertsConfig(count=4, active=2), biases="all")
    trainer = trainer_of(config, session.task.prepared)
    decay = {
        id(parameter): group["weight_decay"]
        for each in trainer.optimizers
        for group in each.param_groups
        for parameter in group["params"]
    }
    for name, parameter in trainer.model.named_parameters():
        assert decay[id(parameter)] == (0.3 if name.startswith("blocks.") and parameter.ndim > 1 else 0), name
    assert sum("experts." in name for name, _ in trainer.model.named_parameters()) == 2


def test_dropout_is_off_in_evaluation(tmp_path):
    session = new_run(tmp_path)
    config = session.config
    config.model = dataclasses.replace(config.model, dropout=0.5)
    trainer = trainer_of(config, session.task.prepared)
    assert trainer.evaluate() == trainer.evaluate()
    assert trainer.model.training


def test_smaller_batches_read_fewer_rows(tmp_path):
    trainer = new_run(tmp_path, steps=12, batch_size=16, batch_warmup=0.5).trainer
    tokens = [trainer.step().tokens // 16 for _ in range(8)]
    assert tokens == [2, 2, 4, 4, 8, 8, 16, 16]
    assert trainer.source.position == sum(tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 12, "batch_warmup": 0.1}, "batch_size 12 must be divisible"),
        ({"context_warmup": 0.1}, "context_warmup needs a context divisible by 8, got 12"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(tmp_path, settings, message):
    session = new_run(tmp_path)
    config = session.config
    config.model = dataclasses.replace(config.model, context=12)
    config.training = dataclasses.replace(config.training, **settings)
    with pytest.raises(ValueError, match=message):
        trainer_of(config, session.task.prepared)
