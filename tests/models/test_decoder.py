"""The decoder: causal, equal with and without cache, sized as its configuration says, able to learn."""

import math

import pytest
import torch

from llmfast.models.cache import KVCache
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder

CONFIGS = {
    "modern": DecoderConfig(vocab_size=97, width=32, layers=2, heads=4, context=24, scale_embedding=True),
    "grouped": DecoderConfig(
        vocab_size=97, width=32, layers=2, heads=4, kv_heads=2, context=24, qk_norm=True
    ),
    "untied": DecoderConfig(
        vocab_size=97, width=24, layers=1, heads=2, head_width=16, context=24, tie_embeddings=False
    ),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    return Decoder(CONFIGS[request.param], generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def tokens():
    return torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(1))


def test_no_token_sees_a_later_one(model, tokens):
    logits = model(tokens)
    changed = tokens.clone()
    changed[:, 13:] = (changed[:, 13:] + 1) % 97
    assert torch.equal(model(changed)[:, :13], logits[:, :13])


@pytest.mark.parametrize("steps", [[24], [1] * 24, [5, 1, 1, 17]])
def test_reading_with_a_cache_gives_the_same_logits(model, tokens, steps):
    cache = KVCache(model.config, 2, torch.float64, torch.device("cpu"))
    parts = [model(part, cache=cache) for part in tokens.split(steps, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-9, atol=1e-9)


def test_the_loss_is_the_cross_entropy_of_the_logits(model, tokens):
    targets = tokens.roll(-1, dims=1)
    targets[0, :5] = -100
    expected = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model(tokens, targets), expected)


def test_the_configuration_counts_the_parameters(model):
    assert model.config.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_training_flops_are_those_of_the_matrix_products(model, tokens):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    S = model.config.context
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.float()(tokens)
    # The counter sees all S keys of every query; the configuration counts the causal half.
    attention = 4 * model.config.layers * model.config.heads * model.config.head_width * S / 2
    expected = 3 * (counter.get_total_flops() / tokens.numel() - attention)
    assert model.config.flops_per_token() == pytest.approx(expected, rel=0.02)


def test_a_tied_table_has_the_variance_of_a_linear_layer():
    config = DecoderConfig(vocab_size=2000, width=128, layers=1)
    table = Decoder(config, generator=torch.Generator().manual_seed(0)).embedding.weight
    bound = math.sqrt(2 / 2128)
    assert table.abs().max() <= 3 * bound
    assert table.std().item() == pytest.approx(
        bound * 0.9866, rel=0.01
    )  # a normal cut at 3 sigma is that narrow


def test_one_batch_is_learnt_by_heart(tokens):
    config = CONFIGS["modern"]
    model = Decoder(config, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    targets = tokens.roll(-1, dims=1)
    for _ in range(150):
        loss = model(tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_a_sequence_longer_than_the_context_is_refused(model):
    with pytest.raises(ValueError, match="25 tokens; the model's context is 24"):
        model(torch.zeros(1, 25, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 130, "heads": 4}, "model.width 130 is not a multiple of model.heads 4"),
        ({"heads": 4, "kv_heads": 3}, "not a multiple of model.kv_heads 3"),
        ({"width": 12, "heads": 4}, "head_width 3 is not a multiple of 8"),
        ({"layers": 0}, "model.layers must be at least 1"),
    ],
)
def test_shapes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**settings)
