"""Small random models of every kind that ``llmfast look`` looks into: decoders, and models of transformers, plain and
patched."""

import pytest
import torch

from llmfast.models.config import DecoderConfig, ExpertsConfig
from llmfast.models.decoder import Decoder

DECODERS = {
    "decoder": {"kv_heads": 2, "qk_norm": True, "smear": True, "tie_embeddings": False},
    "gpt2 decoder": {"positions": "learned", "norm": "layer", "biases": "all", "activation": "gelu_tanh"},
    "dropout decoder": {"dropout": 0.5, "scale_embedding": True},
    "experts decoder": {"experts": ExpertsConfig(count=4, active=2, width=16)},
}
# Families with soft caps and scales after the head (gemma2, granite), layers that return tuples or run in parallel
# (falcon), learned positions (gpt2, opt); of the last two, nothing but what transformers says is known here.
TRANSFORMERS = ("gpt2", "mistral", "gemma2", "granite", "opt", "falcon")
PATCHED = ("patched qwen3",)
MODELS = (*DECODERS, *TRANSFORMERS, *PATCHED)


def decoder(dtype=torch.float32, **options):
    config = {"vocab_size": 60, "width": 32, "layers": 3, "heads": 4, "context": 64} | options
    return Decoder(DecoderConfig(**config), generator=torch.Generator().manual_seed(0)).to(dtype)


def prompt(length=37, vocab=60):
    return torch.randint(vocab, (length,), generator=torch.Generator().manual_seed(1)).tolist()


def model_named(name):
    """A model in training mode, so that whatever leaves dropout on shows."""
    if name in DECODERS:
        return decoder(**DECODERS[name])
    transformers = pytest.importorskip("transformers")
    from tiny_families import configuration, randomize

    kind = name.removeprefix("patched ")
    model = transformers.AutoModelForCausalLM.from_config(configuration(kind, vocab_size=60))
    randomize(model)
    if kind != name:
        import llmfast

        llmfast.patch(model)
    return model.train()
