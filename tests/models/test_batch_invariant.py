"""A decoder in batch-invariant mode: what it generates step by step is what it computes of the whole sequence."""

import pytest
import torch
from cached import CachedRows
from llmfast.kernels import backend, batch_invariant, cross_entropy, linear_cross_entropy

from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder

CONFIGS = {
    "llama": {"norm": "rms", "qk_norm": True},
    "gpt2": {"norm": "layer", "positions": "learned", "activation": "gelu", "biases": "all"},
    "experts": {"experts": {"count": 4, "active": 2}},
}


def decoder(name):
    options = dict(CONFIGS[name])
    if "experts" in options:
        from llmfast.models.config import ExpertsConfig

        options["experts"] = ExpertsConfig(**options["experts"])
    config = DecoderConfig(vocab_size=97, width=64, layers=2, heads=4, kv_heads=2, context=64, **options)
    return Decoder(config, generator=torch.Generator().manual_seed(0)).eval()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_rollouts_have_the_bits_that_the_trainer_computes(name, dtype):
    model = decoder(name).to(dtype)
    tokens = torch.randint(97, (5, 40), generator=torch.Generator().manual_seed(1))
    with backend("reference"), batch_invariant(model):
        whole = model(tokens)
        assert torch.equal(model(tokens[3:4]), whole[3:4])
        cached = CachedRows(model, 2)
        steps = [cached.read(tokens[1:3, :7]), *(cached.read(tokens[1:3, i : i + 1]) for i in range(7, 40))]
        assert torch.equal(torch.cat(steps, 1), whole[1:3])
        # The log-probabilities of a rollout, from its logits, and those of the trainer, which never has any.
        states = model.hidden(tokens).states[:, :-1]
        trained = linear_cross_entropy(states, model.head.weight, tokens[:, 1:], reduction="none")
        sampled = cross_entropy(torch.cat(steps, 1)[:, :-1], tokens[1:3, 1:], reduction="none")
        assert torch.equal(trained[1:3], sampled)
