"""Adapters in a model: what is injected, what it computes, how it is switched, merged and taken out."""

import copy
import dataclasses
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from llmfast.kernels import NF4Linear, dequantize_nf4, quantize_nf4, to_bitsandbytes_state
from safetensors.torch import load_file, save_file
from torch import nn

from llmfast.finetuning import (
    LoraConfig,
    adapter_tensors,
    adapters_by_row,
    add_adapter,
    count_parameters,
    merge_adapter,
    merge_and_remove,
    remove_adapter,
    set_adapter,
    unmerge_adapter,
    use_adapter,
)
from llmfast.finetuning.config import FinetuningConfig
from llmfast.finetuning.model import finetuned_decoder
from llmfast.integrations.huggingface import save_huggingface
from llmfast.integrations.opening import open_start
from llmfast.models.config import DecoderConfig, ExpertsConfig
from llmfast.models.decoder import Decoder
from llmfast.models.quantize import quantize_decoder
from llmfast.models.tensors import checksum, frozen_tensors, model_tensors

TOKENS = torch.arange(24).view(2, 12) % 50
EVERY = {
    "plain": LoraConfig(),
    "parts": LoraConfig(target_modules=("q", "v", "up"), rank=3),
    "rank-stabilized": LoraConfig(rank_stabilized=True),
    "DoRA": LoraConfig(target_modules=("q", "v", "gate", "out"), dora=True),
    "PiSSA": LoraConfig(init="pissa"),
    "tables": LoraConfig(target_modules=("embedding", "head", "qkv"), dora=True),
    "in full": LoraConfig(target_modules=("down",), modules_to_save=("head", "norm")),
    "biases": LoraConfig(target_modules=("qkv",), bias="lora_only"),
    "all biases": LoraConfig(target_modules=("out",), bias="all"),
}


def decoder(**changes):
    settings = {"vocab_size": 50, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "context": 16, "biases": "all"}
    generator = torch.Generator().manual_seed(0)
    model = Decoder(DecoderConfig(**settings | changes), generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=generator)
    return model.eval()


def trained(model, seed=1):
    """The model with other numbers in what its adapters train."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.empty(parameter.shape).normal_(std=0.1, generator=generator))
    return model


def assert_same_logits(logits, expected):
    """Equal but for the roundings of the layers, which are relative to the largest numbers that are summed."""
    assert (logits - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


# --- injection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_an_adapter_starts_as_nothing_trains_alone_and_leaves_no_trace(config):
    model = decoder()
    before, kinds = model(TOKENS), [type(module) for module in model.modules()]
    names, base = list(model.state_dict()), checksum(model_tensors(model))
    add_adapter(model, config)
    torch.testing.assert_close(model(TOKENS), before, rtol=1e-5, atol=1e-5)
    assert set(names) <= set(model.state_dict())
    assert checksum(frozen_tensors(model)) == base
    model(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (".adapters." in name), name
    trained(model)
    assert (model(TOKENS) - before).abs().max() > 1e-3
    remove_adapter(model)
    assert torch.equal(model(TOKENS), before)
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LoraConfig(rank=4, target_modules=("query_key_value",), bias="lora_only"), 466_944),
        (LoraConfig(rank=64, target_modules=("query_key_value", "dense"), bias="lora_only"), 9_535_488),
    ],
)
def test_parameters_are_counted_as_published_for_bloomz_560m(config, count):
    transformers = pytest.importorskip("transformers")
    shape = transformers.BloomConfig(vocab_size=250_880, hidden_size=1024, n_layer=24, n_head=16)
    with torch.device("meta"):
        model = add_adapter(transformers.BloomForCausalLM(shape), config)
    counted = count_parameters(model)
    assert counted.trained == count
    assert counted.all == 559_214_592 + count
    assert str(counted).startswith(f"{count:,} of {counted.all:,} parameters (")


def test_double_injection_changes_nothing_and_another_configuration_is_refused():
    """Trap: an adapter injected into an adapter."""
    model = trained(add_adapter(decoder(), LoraConfig()))
    expected, names = model(TOKENS), list(model.state_dict())
    add_adapter(model, LoraConfig())
    assert list(model.state_dict()) == names
    assert torch.equal(model(TOKENS), expected)
    with pytest.raises(ValueError, match="has an adapter 'default' of another configuration: choose another name"):
        add_adapter(model, LoraConfig(alpha=32.0))
    add_adapter(model, LoraConfig(rank=2), "second")
    assert type(model.blocks[0].attention.qkv.weight) is nn.Parameter
    assert not any(".adapters." in name and "second.whole.adapters" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("qkv",), ["blocks.0.attention.qkv", "blocks.1.attention.qkv"]),
        (("attention.out",), ["blocks.0.attention.out", "blocks.1.attention.out"]),
        (("blocks.1.feed_forward.down",), ["blocks.1.feed_forward.down"]),
        ((r"blocks\.0\..*(out|down)",), ["blocks.0.attention.out", "blocks.0.feed_forward.down"]),
        (("head",), ["head"]),
    ],
)
def test_target_modules_are_names_ends_of_names_and_expressions(patterns, expected):
    model = add_adapter(decoder(), LoraConfig(target_modules=patterns))
    assert sorted({name.split(".adapters")[0] for name in adapter_tensors(model)}) == expected


def test_all_linear_is_every_linear_layer_but_the_output_head():
    model = add_adapter(decoder(), LoraConfig())
    layers = {name.split(".adapters")[0].split(".", 2)[2] for name in adapter_tensors(model)}
    assert layers == {"attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down"}
    model = add_adapter(decoder(), LoraConfig(exclude_modules=("blocks.0.*", "out")))
    assert {name.split(".adapters")[0] for name in adapter_tensors(model)} == {
        "blocks.1.attention.qkv",
        "blocks.1.feed_forward.gate_up",
        "blocks.1.feed_forward.down",
    }


def test_ranks_and_scales_of_layers_follow_their_patterns():
    config = LoraConfig(
        rank=8, alpha=16, rank_pattern={"blocks.0.attention.qkv": 2, "down": 3}, alpha_pattern={"out": 4}
    )
    model = add_adapter(decoder(), config)
    update = {name: model.get_submodule(f"{name}.adapters.default")["whole"] for name in (
        "blocks.0.attention.qkv", "blocks.1.attention.qkv", "blocks.1.feed_forward.down", "blocks.0.attention.out",
    )}  # fmt: skip
    assert [(each.rank, each.scale) for each in update.values()] == [(2, 8.0), (8, 2.0), (3, 16 / 3), (8, 0.5)]
    assert dataclasses.replace(config, rank_stabilized=True).scale_of("x.out") == pytest.approx(4 / 8**0.5)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"target_modules": ("qvk",)}, "has 'qvk', but no layer is called so; did you mean qkv?"),
        ({"target_modules": ("norm",)}, "has 'norm', which is not a linear layer or an embedding"),
        ({"target_modules": ("qkv", "q")}, "names blocks.0.attention.qkv and a part of it"),
        ({"modules_to_save": ("haed",)}, "lora.modules_to_save has 'haed', but no module is called so"),
        ({"target_modules": ("q",), "bias": "all"}, "a part of blocks.0.attention.qkv has no bias of its own"),
    ],
)
def test_what_cannot_be_injected_is_named_and_nothing_has_changed(config, sentence):
    model = decoder()
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(sentence)):
        add_adapter(model, LoraConfig(**config))
    assert list(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"rank": 0}, "lora.rank must be at least 1, got 0"),
        ({"rank_pattern": {"q": 0}}, "lora.rank_pattern['q'] must be at least 1"),
        ({"alpha": 0}, "lora.alpha must be positive, got 0"),
        ({"dropout": 1.0}, "lora.dropout must be at least 0 and below 1"),
        ({"target_modules": ()}, "lora.target_modules is empty"),
        ({"target_modules": ("(",)}, "which is not a regular expression"),
    ],
)
def test_configurations_that_cannot_be_are_refused(config, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        LoraConfig(**config)


@pytest.mark.parametrize("patterns", [("all-linear",), ("gate",), ("down", "qkv"), ("experts",)])
def test_experts_are_refused_by_name_and_left_alone_if_excluded(patterns):
    """Trap: an adapter of all linear layers that has none of the experts, most of the model, and nobody is told."""
    model = decoder(experts=ExpertsConfig(count=4, shared_width=32))
    with pytest.raises(ValueError, match=r"means the matrices of experts in blocks\.0.*set lora\.exclude_modules"):
        add_adapter(model, LoraConfig(target_modules=patterns))
    if patterns != ("experts",):
        add_adapter(model, LoraConfig(target_modules=patterns, exclude_modules=("experts",)))
        with torch.no_grad():
            trained(model)
        names = {name.partition(".adapters")[0] for name in adapter_tensors(model)}
        assert {name.rpartition(".")[2] for name in names} >= (
            {"gate_up"} if patterns == ("gate",) else {"down", "qkv"}
        )
        before = model(TOKENS)
        merge_and_remove(model)
        torch.testing.assert_close(model(TOKENS), before)


def test_layers_that_would_pass_over_an_adapter_are_refused():
    """Trap: an adapter in a layer whose weight is used without its forward."""
    attention = nn.MultiheadAttention(16, 2)
    with pytest.raises(ValueError, match="out_proj is a NonDynamicallyQuantizableLinear, for which there are no"):
        add_adapter(nn.ModuleDict({"attention": attention}), LoraConfig())
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].forward = lambda x: x
    with pytest.raises(ValueError, match="0 has a forward of its own"):
        add_adapter(model, LoraConfig())


def test_a_model_of_torch_alone_and_layers_used_twice_get_one_adapter():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    add_adapter(model, LoraConfig(rank=2))
    assert count_parameters(model).trained == 2 * (8 + 8)
    trained(model)(torch.randn(3, 8)).sum().backward()


# --- what is computed -----------------------------------------------------------------------------------------------


def reference(layer, lora, x):
    """The formula in float64."""
    weight = layer.weight if not isinstance(layer, NF4Linear) else dequantize_nf4(layer.quantized, torch.float32)
    weight, bias, a, b = (each.detach().double() for each in (weight, layer.bias, lora.a, lora.b))
    updated = weight + lora.scale * b @ a
    if lora.magnitude is not None:
        updated = lora.magnitude.double()[:, None] * updated / updated.norm(dim=1, keepdim=True)
    return F.linear(x.double(), updated, bias)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "4 bits"])
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("stabilized", [False, True], ids=["alpha/r", "alpha/sqrt(r)"])
def test_a_layer_is_its_formula(packed, dora, stabilized):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    model = nn.Sequential(NF4Linear.from_linear(layer) if packed else layer)
    add_adapter(model, LoraConfig(rank=4, alpha=8, dora=dora, rank_stabilized=stabilized))
    trained(model)
    x = torch.randn(2, 3, 64)
    update = model[0].adapters["default"]["whole"]
    assert update.scale == (4.0 if stabilized else 2.0)
    torch.testing.assert_close(model(x).double(), reference(model[0], update, x), rtol=1e-5, atol=1e-5)


def test_the_gradients_of_a_layer_are_those_of_its_formula():
    torch.manual_seed(0)
    model = trained(add_adapter(nn.Sequential(nn.Linear(16, 12)).double(), LoraConfig(rank=3)))
    update, x = model[0].adapters["default"]["whole"], torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(model(x).square().sum(), (x, update.a, update.b))
    weight = model[0].weight + update.scale * update.b @ update.a
    expected = torch.autograd.grad(F.linear(x, weight, model[0].bias).square().sum(), (x, update.a, update.b))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dora_with_dropout_changes_nothing_at_the_start_and_keeps_the_mean():
    """Traps: dropout that reaches the frozen weight's own product; the change of the lengths seen with all of x."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24))
    x = torch.randn(64, 32)
    plain = model(x)
    add_adapter(model, LoraConfig(rank=4, dora=True, dropout=0.5)).train()
    torch.testing.assert_close(model(x), plain, rtol=1e-5, atol=1e-6)
    trained(model)
    dropped = torch.stack([model(x) for _ in range(2000)])
    exact = model.eval()(x)
    deviation = dropped.std(0) / len(dropped) ** 0.5
    assert ((dropped.mean(0) - exact).abs() < 6 * deviation).all()
    model.train()
    model(x).sum().backward()
    update = model[0].adapters["default"]["whole"]
    assert all(each.grad is not None for each in (update.a, update.b, update.magnitude))


def test_the_lengths_of_dora_are_constants_in_the_backward_pass():
    """Liu et al. 2024, section 4.3."""
    torch.manual_seed(0)
    model = trained(add_adapter(nn.Sequential(nn.Linear(16, 12)).double(), LoraConfig(rank=3, dora=True)))
    update, x = model[0].adapters["default"]["whole"], torch.randn(5, 16, dtype=torch.float64)
    (found,) = torch.autograd.grad(model(x).square().sum(), update.b)
    updated = model[0].weight + update.scale * update.b @ update.a
    lengths = updated.norm(dim=1).detach()
    y = F.linear(x, (update.magnitude / lengths)[:, None] * updated, model[0].bias)
    (expected,) = torch.autograd.grad(y.square().sum(), update.b)
    torch.testing.assert_close(found, expected)


def test_dropout_is_drawn_in_training_alone():
    model = trained(add_adapter(decoder(), LoraConfig(dropout=0.5)))
    assert torch.equal(model(TOKENS), model(TOKENS))
    model.train()
    assert not torch.equal(model(TOKENS), model(TOKENS))


def test_pissa_starts_from_the_largest_singular_vectors():
    torch.manual_seed(0)
    weight = torch.randn(24, 8) @ torch.randn(8, 32)  # of rank 8
    layer = nn.Linear(32, 24)
    layer.weight = nn.Parameter(weight)
    model = add_adapter(nn.Sequential(layer), LoraConfig(rank=8, alpha=4, init="pissa"))
    update = model[0].adapters["default"]["whole"]
    torch.testing.assert_close(update.scale * update.b @ update.a, weight, rtol=1e-4, atol=1e-4)
    assert torch.equal(model[0].weight, weight)
    with pytest.raises(ValueError, match=r"lora\.rank 9 is more than 8, the rank of a weight of shape \(8, 32\)"):
        add_adapter(nn.Sequential(nn.Linear(32, 8)), LoraConfig(rank=9, init="pissa"))


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_the_loss_is_that_of_the_logits(config):
    """Trap: a loss that multiplies by the output head's frozen weight, past its adapter."""
    model = trained(add_adapter(decoder(vocab_multiple=64), config))
    for training in (False, True):
        model.train(training)
        logits = model(TOKENS[:, :-1])
        expected = F.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())
        torch.testing.assert_close(model(TOKENS[:, :-1], TOKENS[:, 1:]), expected, rtol=1e-5, atol=1e-5)


def test_learned_positions_can_have_an_adapter():
    """Trap: a table that is read past its adapter."""
    model = decoder(positions="learned", norm="layer", activation="gelu_tanh")
    before = model(TOKENS)
    trained(add_adapter(model, LoraConfig(target_modules=("positions",))))
    after = model(TOKENS)
    assert (after - before).abs().max() > 1e-3
    merge_and_remove(model)
    torch.testing.assert_close(model(TOKENS), after, rtol=1e-5, atol=1e-5)


def test_autocast_and_narrow_bases_compute_in_their_precision():
    model = trained(add_adapter(decoder(), LoraConfig()))
    expected = model(TOKENS)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(TOKENS).float(), expected, rtol=0.1, atol=0.1)
    narrow = add_adapter(nn.Sequential(nn.Linear(16, 8)).bfloat16(), LoraConfig())
    assert {each.dtype for each in adapter_tensors(narrow).values()} == {torch.float32}
    assert narrow(torch.randn(2, 16).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("config", [LoraConfig(), EVERY["parts"], EVERY["DoRA"]], ids=["plain", "parts", "DoRA"])
def test_compiled_and_plain_agree(config):
    model = trained(add_adapter(decoder(), config))
    expected = torch.autograd.grad(model(TOKENS[:, :-1], TOKENS[:, 1:]), [*adapter_tensors(model).values()])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(TOKENS[:, :-1], TOKENS[:, 1:]), [*adapter_tensors(model).values()])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# --- several adapters -----------------------------------------------------------------------------------------------


def three(packed=False):
    """A model with three adapters of different kinds, and what each of them computes."""
    model = quantize_decoder(decoder(width=64)) if packed else decoder()
    found = {None: model(TOKENS)}
    kinds = {"a": EVERY["plain"], "b": EVERY["DoRA"], "c": EVERY["in full"]}
    for seed, (name, config) in enumerate(kinds.items()):
        trained(add_adapter(model, config, name), seed)
        found[name] = model(TOKENS)
    return model, found


def test_adapters_are_switched_at_run_time():
    model, found = three()
    for name, expected in found.items():
        set_adapter(model, name)
        assert torch.equal(model(TOKENS), expected)
    with use_adapter(model, "b"):
        assert torch.equal(model(TOKENS), found["b"])
    assert torch.equal(model(TOKENS), found["c"])
    remove_adapter(model, "c")
    assert torch.equal(model(TOKENS), found[None])
    with pytest.raises(ValueError, match="has no adapter 'c'; it has 'a', 'b'"):
        set_adapter(model, "c")


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "4 bits"])
def test_each_row_of_a_batch_has_its_own_adapter(packed):
    model, found = three(packed)
    names = ["b", None, "a", "c", "a", "b"]
    tokens = torch.stack([TOKENS[row % 2] for row in range(len(names))])
    with adapters_by_row(model, names):
        logits = model(tokens)
        with pytest.raises(ValueError, match="chosen for 6 rows, but a layer got 4"):
            model(tokens[:4])
        loss = model(tokens[:, :-1], tokens[:, 1:])
    for row, name in enumerate(names):
        torch.testing.assert_close(logits[row], found[name][row % 2], rtol=1e-5, atol=1e-5)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(TOKENS), found["c"])
    with pytest.raises(ValueError, match="has no adapter 'd'"), adapters_by_row(model, ["d"]):
        pass


def test_only_the_newest_adapter_is_trained():
    model, _ = three()
    trainable = {name.split(".adapters.")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"c"}


def test_a_copy_of_a_model_has_adapters_of_its_own():
    model, found = three()
    other = copy.deepcopy(model)
    set_adapter(other, "a")
    assert torch.equal(model(TOKENS), found["c"])
    assert torch.equal(other(TOKENS), found["a"])


# --- merging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_merging_adds_the_update_and_unmerging_takes_it_back_to_the_bit(config):
    model = decoder()
    weights = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    trained(add_adapter(model, config))
    expected = model(TOKENS)
    deltas = {
        name.removesuffix(".whole.b"): model.get_submodule(name.removesuffix(".b")).delta().detach()
        for name in adapter_tensors(model)
        if name.endswith(".whole.b") and not config.dora and "embedding" not in name
    }
    assert merge_adapter(model).layers > 0
    for name, delta in deltas.items():
        layer = name.split(".adapters")[0]
        error = model.get_submodule(layer).weight.double() - (weights[f"{layer}.weight"].double() + delta.double())
        assert error.abs().max() <= 1e-6
    assert_same_logits(model(TOKENS), expected)
    with pytest.raises(ValueError, match="the adapter 'default' is merged into the weights"):
        set_adapter(model, "default")
    unmerge_adapter(model)
    assert torch.equal(model(TOKENS), expected)
    with pytest.raises(ValueError, match="no adapter is merged"):
        unmerge_adapter(model)
    remove_adapter(model)
    for name, tensor in model_tensors(model).items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("target", ["embedding", "head"])
def test_a_tied_head_with_an_adapter_diverges_and_is_kept_at_merge(target):
    """Trap: one table of two that share a weight gets an update, and saving drops it or gives it to both."""
    model = decoder()
    trained(add_adapter(model, LoraConfig(target_modules=(target,))))
    expected = model(TOKENS)
    merge_adapter(model)
    assert model.config.tie_embeddings is False
    assert_same_logits(model(TOKENS), expected)
    again = Decoder.from_tensors(model.config, {n: t for n, t in model_tensors(model).items() if "adapters" not in n})
    assert_same_logits(again.eval()(TOKENS), expected)
    unmerge_adapter(model)
    assert model.config.tie_embeddings is True
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("named", ["embedding", "head"])
def test_a_tied_module_that_is_trained_in_full_stays_tied_with_its_copy(named):
    model = add_adapter(decoder(), LoraConfig(target_modules=("out",), modules_to_save=(named,)))
    copies = [each.adapters["default"].weight for each in (model.embedding, model.head)]
    assert copies[0] is copies[1]
    trained(model)
    expected = model(TOKENS)
    merge_and_remove(model)
    assert model.head.weight is model.embedding.weight
    assert model.config.tie_embeddings is True
    assert_same_logits(model(TOKENS), expected)
    alone = LoraConfig(target_modules=("out",), modules_to_save=(named,), keep_tied=False)
    model = add_adapter(decoder(), alone)
    assert sum("embedding.adapters" in name or "head.adapters" in name for name in adapter_tensors(model)) == 1


def test_merging_into_a_base_of_4_bits_decodes_it_and_says_what_packing_it_again_would_cost():
    """Trap: an update added to packed bytes, or lost when the sum is packed again without a word."""
    model = quantize_decoder(decoder(width=64))
    packed = {name: module.weight.clone() for name, module in model.named_modules() if isinstance(module, NF4Linear)}
    trained(add_adapter(model, LoraConfig(rank=2)))
    expected = model(TOKENS)
    report = merge_adapter(model)
    assert report.dequantized == report.layers == len(packed)
    assert 0.1 < report.requantized_error < 100
    assert "storing them in 4 bits again would change them by" in str(report)
    assert not any(isinstance(module, NF4Linear) for module in model.modules())
    assert_same_logits(model(TOKENS), expected)
    unmerge_adapter(model)
    assert torch.equal(model(TOKENS), expected)
    for name, record in packed.items():
        assert torch.equal(model.get_submodule(name).weight, record)
    merge_and_remove(model)
    assert {type(module) for module in model.blocks.modules()} & {NF4Linear, nn.Linear} == {nn.Linear}
    assert_same_logits(model(TOKENS), expected)


# --- bases in 4 bits ------------------------------------------------------------------------------------------------


def test_a_base_is_quantized_once_and_its_logits_are_those_of_the_decoded_base():
    """Trap: a base in 4 bits that is quantized again."""
    plain = decoder(width=64)
    model = quantize_decoder(copy.deepcopy(plain))
    records = {name: module.weight for name, module in model.named_modules() if isinstance(module, NF4Linear)}
    assert len(records) == 8
    assert quantize_decoder(model) is model
    for name, record in records.items():
        assert model.get_submodule(name).weight is record
        numbers = dequantize_nf4(model.get_submodule(name).quantized, torch.float32)
        plain.get_submodule(name).weight = nn.Parameter(numbers)
    torch.testing.assert_close(model(TOKENS), plain(TOKENS), rtol=1e-5, atol=1e-5)
    add_adapter(model, LoraConfig())
    torch.testing.assert_close(model(TOKENS), plain(TOKENS), rtol=1e-5, atol=1e-5)
    assert quantize_decoder(model) is model
    full = count_parameters(plain).all
    assert count_parameters(model).all == full + count_parameters(model).trained


def packed_folder(folder, double_quant):
    """A Hugging Face folder as bitsandbytes writes it, and the numbers of its linear layers."""
    save_huggingface(decoder(width=64, biases="none", tie_embeddings=False), folder / "full")
    entries, numbers = {}, {}
    for name, tensor in load_file(folder / "full" / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            packed = quantize_nf4(tensor, double_quant=double_quant)
            entries |= to_bitsandbytes_state(packed, name)
            numbers[name] = dequantize_nf4(packed, torch.float32)
        else:
            entries[name] = tensor
    (folder / "packed").mkdir()
    shutil.copyfile(folder / "full" / "config.json", folder / "packed" / "config.json")
    save_file(entries, folder / "packed" / "model.safetensors")
    return folder / "packed", numbers


@pytest.mark.parametrize("double_quant", [False, True], ids=["plain scales", "nested scales"])
def test_a_checkpoint_of_bitsandbytes_keeps_its_numbers_to_the_bit(tmp_path, double_quant):
    """Trap: a base in 4 bits that is decoded, joined and quantized to other numbers."""
    folder, numbers = packed_folder(tmp_path, double_quant)
    expected = {
        "blocks.1.attention.qkv": [numbers[f"model.layers.1.self_attn.{each}_proj.weight"] for each in "qkv"],
        "blocks.0.feed_forward.gate_up": [numbers[f"model.layers.0.mlp.{each}_proj.weight"] for each in ("gate", "up")],
        "blocks.0.attention.out": [numbers["model.layers.0.self_attn.o_proj.weight"]],
    }
    start = open_start(folder)
    config = FinetuningConfig(start=str(folder), adapter="qlora")
    models = {"4 bits": finetuned_decoder(config, start, start.config), "decoded": start.decoder()}
    for kind, model in models.items():
        for name, parts in expected.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, NF4Linear) == (kind == "4 bits")
            found = dequantize_nf4(layer.quantized, torch.float32) if kind == "4 bits" else layer.weight
            assert torch.equal(found, torch.cat(parts)), (kind, name)
    dropped = start.decoder(dataclasses.replace(start.config, dropout=0.5), keep_4_bits=True)
    assert dropped.config.dropout == 0.5
    torch.testing.assert_close(dropped.eval()(TOKENS), models["4 bits"].eval()(TOKENS), rtol=1e-5, atol=1e-5)
