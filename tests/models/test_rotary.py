"""Rotary tables: the frequencies of every scaling are those of transformers."""

import dataclasses

import pytest
import torch

from llmfast.models.config import DecoderConfig, RopeScaling
from llmfast.models.decoder import Decoder
from llmfast.models.rotary import frequencies, rotary_table, temperature

BASE = DecoderConfig(width=128, heads=2, context=4096, rope_base=500_000.0)
SCALINGS = {
    "linear": RopeScaling("linear", 4.0),
    "dynamic": RopeScaling("dynamic", 4.0, original_context=1024),
    "llama3": RopeScaling("llama3", 8.0, 1024, low_frequency_factor=1.0, high_frequency_factor=4.0),
    "yarn": RopeScaling("yarn", 4.0, 1024),
    "yarn by hand": RopeScaling("yarn", 4.0, 1024, beta_fast=24.0, beta_slow=2.0, attention_factor=1.2, truncate=False),
}


def transformers_frequencies(scaling: RopeScaling, length: int) -> tuple[torch.Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {
        "rope_type": scaling.kind,
        "rope_theta": BASE.rope_base,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context or 1024,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "attention_factor": scaling.attention_factor,
        "truncate": scaling.truncate,
    }
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, max_position_embeddings=1024, rope_parameters=settings)
    return ROPE_INIT_FUNCTIONS[scaling.kind](config, seq_len=length)


@pytest.mark.parametrize("length", [1000, 3000])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name, length):
    config = dataclasses.replace(BASE, rope_scaling=SCALINGS[name])
    expected, size = transformers_frequencies(config.rope_scaling, length)
    torch.testing.assert_close(frequencies(config, length).float(), expected, rtol=2e-6, atol=0)
    assert temperature(config) == pytest.approx(size)


def test_late_positions_are_exact():
    """Formed in float32, the angle of position 100,000 is off in its third digit."""
    config = dataclasses.replace(BASE, context=100_001)
    cos, _ = rotary_table(config, 100_001)
    angle = 100_000 * torch.tensor(500_000.0, dtype=torch.float64) ** -(2 / 64)
    assert cos[-1, 1].item() == pytest.approx(angle.cos().item(), abs=1e-7)


def test_a_model_with_dynamic_scaling_is_plain_until_its_original_context():
    scaled = DecoderConfig(width=32, heads=2, context=64, rope_scaling=RopeScaling("dynamic", 4.0, 16))
    plain = dataclasses.replace(scaled, rope_scaling=RopeScaling())
    ours, theirs = (Decoder(each, generator=torch.Generator().manual_seed(0)) for each in (scaled, plain))
    tokens = torch.randint(4096, (1, 40))
    assert torch.equal(ours(tokens[:, :16]), theirs(tokens[:, :16]))
    assert not torch.allclose(ours(tokens)[:, -1], theirs(tokens)[:, -1])
