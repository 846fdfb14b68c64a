"""The descriptions of families: each names what transformers has, and nothing else has to change for another one."""

import pytest
import torch
from torch import nn

from llmfast.integrations.huggingface.config import from_config, to_config
from llmfast.integrations.huggingface.families import DECODERS, FAMILIES
from llmfast.integrations.replacements import REPLACEMENTS
from llmfast.models.activations import ACTIVATIONS, of_module
from llmfast.models.config import DecoderConfig, ExpertsConfig

transformers = pytest.importorskip("transformers")

SIZES = {
    "pad_token_id": None,
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 16,
    "mlp_only_layers": [0],
}

GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 32}


def sizes_of(family) -> dict:
    """The sizes that the family has."""
    if family.conv1d:
        return GPT2_SIZES
    kind = getattr(transformers, family.architecture).config_class
    known = kind(pad_token_id=None).to_dict()
    names = {"num_local_experts": "num_experts"} if "num_experts" in known else {}
    return {name: value for name, value in SIZES.items() if name in known and name not in names}


def their_model(family):
    kind = getattr(transformers, family.architecture)
    sizes = GPT2_SIZES if family.conv1d else SIZES
    with torch.device("meta"):
        return kind(kind.config_class(**sizes))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_class_and_every_part_exists(family):
    assert family.model_type == getattr(transformers, family.architecture).config_class.model_type
    names = {type(module).__name__ for module in their_model(family).modules()}
    assert {family.prefix + rest for rest in family.patched} <= names
    assert set(family.patched.values()) <= REPLACEMENTS.keys()
    assert family.settings or family.patched


@pytest.mark.parametrize("family", DECODERS.values(), ids=DECODERS)
def test_adapters_of_peft_attach_to_every_linear_module_of_a_block(family):
    """Traps: a name that also ends one of an expert or of a norm; a projection that is left out."""
    peft = pytest.importorskip("peft")
    model = their_model(family)
    of_experts = (".experts", ".router", ".gate", ".shared_expert_gate")
    expected = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | transformers.pytorch_utils.Conv1D)
        and name != "lm_head"
        and not any(part in name + "." for part in (f"{each}." for each in of_experts))
    }
    targets = [name for names in family.adapter_targets.values() for name in names]
    assert expected == {
        name for name, _ in model.named_modules() if name.endswith(tuple(f".{each}" for each in targets))
    }
    if any("{x}" in name for names in family.names.values() for name in names):  # where PEFT takes other modules
        return
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))
    found = {name for name, module in tuned.named_modules() if hasattr(module, "lora_A")}
    assert found == {f"base_model.model.{name}" for name in expected}
    assert len(found) > 4


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_experts_are_nothing_that_a_plain_family_can_say(kind):
    with pytest.raises(ValueError, match=rf"a {kind} folder cannot say .*model\.experts\.count 4"):
        to_config(DecoderConfig(width=32, layers=2, experts=ExpertsConfig(4)), kind)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "llama4_text"])
def test_a_model_without_experts_is_no_mixture(kind):
    """Trap: a folder with zero experts, which their library cannot load."""
    with pytest.raises(ValueError, match=r"this family has experts, and model\.experts\.count is 0"):
        to_config(DecoderConfig(width=32, layers=2), kind)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "llama"),
        ({"window": 4}, "mistral"),
        ({"biases": "qkv"}, "qwen2"),
        ({"biases": "qkv", "window": 4, "window_pattern": "fs"}, "qwen2"),
        ({"qk_norm": True, "head_width": 8}, "qwen3"),
        ({"qk_norm": True, "window": 4, "window_pattern": "fs"}, "qwen3"),
        ({"experts": ExpertsConfig(2)}, "mixtral"),
        ({"experts": ExpertsConfig(2), "window": 4}, "mixtral"),
        ({"experts": ExpertsConfig(2, pattern="de"), "qk_norm": True, "window": 4}, "qwen3_moe"),
        ({"experts": ExpertsConfig(2, shared_width=8, shared_gate=True), "biases": "qkv"}, "qwen2_moe"),
        (
            {
                "experts": ExpertsConfig(2, biases=True),
                "biases": "all",
                "activation": "clamped_swiglu",
                "attention_sinks": True,
                "window": 4,
                "window_pattern": "sf",
            },
            "gpt_oss",
        ),
        ({"positions": "learned", "norm": "layer", "biases": "all", "activation": "gelu"}, "gpt2"),
    ],
)
def test_a_decoder_is_written_as_the_first_family_that_can_say_it(settings, expected):
    config = DecoderConfig(vocab_size=32, width=32, layers=2, **settings)
    family, file = to_config(config)
    assert family.model_type == file["model_type"] == expected
    assert to_config(from_config(file)[1])[1] == file


def test_activations_are_found_by_what_they_compute():
    """Trap: torch.nn.GELU is two activations, told apart by an argument."""
    x = torch.randn(4, 16, dtype=torch.float64)
    modules = [
        nn.SiLU(), nn.GELU(), nn.GELU("tanh"), transformers.activations.GELUTanh(),
        transformers.activations.NewGELUActivation(), transformers.activations.GELUActivation(),
    ]  # fmt: skip
    for module in modules:
        gated = of_module(module, gated=True)
        torch.testing.assert_close(gated.function()(x, torch.ones_like(x)), module(x))
        plain = of_module(module, gated=False)
        if plain is None:
            assert isinstance(module, nn.SiLU)
        else:
            torch.testing.assert_close(plain.function()(x), module(x))
    assert of_module(nn.ReLU(), gated=True) is None
    for name, activation in ACTIVATIONS.items():
        if not activation.transformers:  # which its family implies
            continue
        their_function = transformers.activations.ACT2FN[activation.transformers[0]]
        assert type(their_function).__name__ in activation.modules, name


@pytest.mark.parametrize("family", DECODERS.values(), ids=DECODERS)
def test_what_a_file_does_not_say_is_what_their_library_takes(family):
    """Trap: defaults of ours in the place of theirs, which the shape of no tensor contradicts."""
    sizes = sizes_of(family)
    theirs = getattr(transformers, family.architecture).config_class(**sizes)
    assert family.read(sizes) == family.read(theirs.to_dict())


@pytest.mark.parametrize("family", DECODERS.values(), ids=DECODERS)
def test_sizes_that_no_tensor_shows_must_be_in_the_file(family):
    sizes = sizes_of(family)
    for name in ("num_attention_heads", "num_hidden_layers", "n_head", "n_layer"):
        if name in sizes:
            with pytest.raises(KeyError, match=name):
                family.read(sizes | {name: None})
