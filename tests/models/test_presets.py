"""Presets have the published sizes, and what is computed from a configuration is what the real module has."""

import dataclasses
import doctest
import gc

import llmfast.kernels as kernels
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmfast import cli
from llmfast.models import presets
from llmfast.models.config import DecoderConfig, ExpertsConfig
from llmfast.models.decoder import Decoder
from llmfast.models.size import active_parameters, cache_bytes_per_token, parameters_by_part
from llmfast.training.preflight import memory

PUBLISHED = {  # parameters in the published safetensors; GPT-2's with the 47 rows that fill up its table
    "gpt2": 124_439_808 + 47 * 768,
    "gpt2-medium": 354_823_168 + 47 * 1024,
    "gpt2-large": 774_030_080 + 47 * 1280,
    "gpt2-xl": 1_557_611_200 + 47 * 1600,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "smollm2-135m": 134_515_008,
    "mixtral-8x7b": 46_702_792_704,
}
VARIANTS = {
    "plain": {},
    "gpt2": {"positions": "learned", "norm": "layer", "activation": "gelu_tanh", "biases": "all"},
    "filled": {"vocab_multiple": 64, "kv_heads": 2, "qk_norm": True, "biases": "qkv"},
    "untied": {"tie_embeddings": False, "norm": "layer", "qk_norm": True, "biases": "all"},
    "experts": {"experts": ExpertsConfig(count=4, pattern="de")},
    "gpt_oss": {
        "experts": ExpertsConfig(count=4, biases=True),
        "biases": "all",
        "attention_sinks": True,
        "activation": "clamped_swiglu",
    },
    "llama4": {"attention_chunk": 8, "window_pattern": "c", "qk_l2_norm": True},
    "shared": {"experts": ExpertsConfig(count=4, width=32, shared_width=64, shared_gate=True)},
}


def variant(name: str, **changes) -> DecoderConfig:
    return DecoderConfig(**{"vocab_size": 100, "width": 64, "layers": 2, "context": 32} | VARIANTS[name] | changes)


def test_the_examples_are_true():
    assert doctest.testmod(presets).failed == 0


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_counts_the_parameters_of_the_real_module(name):
    config = presets.preset(name)
    with torch.device("meta"):
        model = Decoder(config)
    assert config.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert config.parameters == PUBLISHED.get(name, config.parameters)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_part_is_counted(name):
    model = Decoder(variant(name))
    found = dict.fromkeys(parameters_by_part(model.config), 0)
    for parameter_name, parameter in model.named_parameters():
        found[part_of(parameter_name)] += parameter.numel()
    assert found == parameters_by_part(model.config)


def part_of(name: str) -> str:
    for word, part in {
        "norm": "norms", ".attention.": "attention", "router": "routers", "shared_gate": "routers",
        "shared": "shared experts", "experts": "experts", "feed_forward": "feed-forward",
    }.items():  # fmt: skip
        if word in name:
            return part
    return name.split(".")[0]


def test_a_token_passes_the_experts_it_is_sent_to():
    config = presets.preset("mixtral-8x7b")
    assert active_parameters(config) == 12_879_925_248  # "about 13 B", Jiang et al. 2024, section 2


def test_cache_bytes_of_grouped_queries():
    assert cache_bytes_per_token(presets.preset("llama-3.1-8b")) == 2 * 32 * 8 * 128 * 2


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made inside that are still alive, those in ``except_for`` aside."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._weak_ref()] = (storage._cdata, storage.nbytes())
        return result

    def count(self, except_for: list[torch.Tensor]) -> int:
        gc.collect()
        known = {tensor.untyped_storage()._cdata for tensor in except_for}
        alive = {}
        for reference, (address, size) in self.storages.items():
            if not torch.UntypedStorage._expired(reference) and address not in known:
                alive[address] = size
            torch.UntypedStorage._free_weak_ref(reference)
        return sum(alive.values())


def kept_for_backward(config: DecoderConfig, setup: memory.TrainingSetup) -> int:
    """Bytes alive after a forward pass through the kernels, with tensors that have sizes and no content."""
    model = Decoder(config)
    model.activation_checkpointing = setup.checkpointing
    live = LiveBytes()
    tokens = torch.zeros(setup.batch_size, config.context, dtype=torch.int64)
    half = setup.precision == "bfloat16"
    with FakeTensorMode(allow_non_fake_inputs=True), kernels.backend("triton"), live:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(tokens)
        return live.count([*model.parameters(), *model.buffers(), logits])


@pytest.mark.parametrize(
    ("name", "precision", "checkpointing", "tolerance"),
    [
        ("gpt2", "bfloat16", "none", 0),
        ("filled", "float32", "none", 0),
        ("filled", "bfloat16", "selective", 0),
        ("filled", "bfloat16", "full", 0),
        ("shared", "bfloat16", "none", 0.07),
        ("gpt_oss", "bfloat16", "none", 0.07),
        ("llama4", "bfloat16", "none", 0.01),
    ],
)
def test_activation_memory_is_what_a_forward_pass_keeps(name, precision, checkpointing, tolerance):
    setup = memory.TrainingSetup(2, precision=precision, checkpointing=checkpointing)

    def of_a_block(measure) -> float:
        """What a second layer adds for a second row of tokens: no weights, no embedding, no head."""
        one, two = (dataclasses.replace(setup, batch_size=size) for size in (1, 2))
        added = [measure(variant(name, layers=n), two) - measure(variant(name, layers=n), one) for n in (1, 2)]
        return added[1] - added[0]

    def computed(config, setup):
        return memory.training_memory(config, setup)["activations"]

    assert of_a_block(computed) == pytest.approx(of_a_block(kept_for_backward), rel=tolerance)


def test_the_largest_batch_fits_and_the_next_does_not():
    config = presets.preset("gpt2")
    gpu = 24 * memory.GIB
    batch = memory.largest_batch(config, memory.TrainingSetup(), gpu)
    needed = [sum(memory.training_memory(config, memory.TrainingSetup(n)).values()) for n in (batch, batch + 1)]
    assert needed[0] + memory.OVERHEAD <= gpu < needed[1] + memory.OVERHEAD
    assert memory.largest_batch(config, memory.TrainingSetup(), 2 * memory.GIB) == 0


def test_the_command_says_what_fits(capsys):
    assert cli.main(["model", "info", "gpt2", "--gpu_memory", "24"]) == 0
    shown = capsys.readouterr().out
    assert "124,475,904" in shown
    assert "checkpointing full" in shown


def test_the_command_reads_a_run(tmp_path, capsys):
    from small_run import new_run

    session = new_run(tmp_path)
    assert cli.main(["model", "info", str(session.run.folder)]) == 0
    assert f"{session.config.model.parameters:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gtp2"], "gtp2 is not a preset; did you mean gpt2?"),
        (["gpt2", "--sequence", "2000"], "sequence must be from 1 to the model's context 1024, got 2000"),
        (["gpt2", "--gpu_memory", "0"], "gpu_memory must be positive"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, capsys):
    assert cli.main(["model", "info", *arguments]) == 2
    assert message in capsys.readouterr().err
