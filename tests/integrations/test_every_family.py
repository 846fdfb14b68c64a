"""``attn_implementation="llmfast"`` in every family of the installed transformers: as eager attention, or refused.

The families are found in the registry of transformers. A sample runs by default, all of them with ``--every-family``.
"""

import copy
import warnings

import pytest
import torch
from tiny_families import CHANGES, NOT_TINY, configuration, families, randomize

transformers = pytest.importorskip("transformers")

from llmfast.integrations.transformers_attention import register  # noqa: E402

# One of each kind of attention and mask.
SAMPLE = {
    "bart", "bert", "bloom", "cohere2", "deepseek_v3", "falcon", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_oss",
    "inkling2_text", "llama", "llama4_text", "mistral", "opt", "phi3", "qwen3_next", "t5", "whisper",
}  # fmt: skip
FAMILIES = [each for each in families() if each[0] not in NOT_TINY]
TOLERANCE = 1e-3  # of the largest number: roundings of float32 stay below 1e-5, one key too many or too few does not

OF_SIDE = {"none": slice(0), "left": slice(4), "right": slice(-4, None)}


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:
        chosen = FAMILIES if metafunc.config.getoption("--every-family") else [f for f in FAMILIES if f[0] in SAMPLE]
        ids = [f"{kind}-pair" if is_pair else kind for kind, _, is_pair in chosen]
        metafunc.parametrize("family", chosen, ids=ids)


def build(kind: str, name: str, implementation: str):
    torch.manual_seed(0)
    config = configuration(kind, **CHANGES.get(kind, {}))
    config._attn_implementation = implementation
    model = getattr(transformers, name)(config).float().eval()
    randomize(model)
    for setting, value in {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "decoder_start_token_id": 1,
        "eos_token_id": None,
    }.items():
        setattr(model.generation_config, setting, value)
    return model


def inputs(padding: slice, is_pair: bool):
    """A batch of two rows, the second with padding, and which logits are of real tokens."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 96, (2, 13), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, padding] = 0
    batch = {"input_ids": tokens.masked_fill(mask == 0, 0)}
    if padding != OF_SIDE["none"]:
        batch["attention_mask"] = mask
    if not is_pair:
        return batch, mask.bool()
    batch["decoder_input_ids"] = torch.randint(3, 96, (2, 7), generator=generator)
    return batch, torch.ones(2, 7, dtype=torch.bool)


def outputs(model, padding: slice, is_pair: bool) -> dict[str, torch.Tensor]:
    """Logits of real tokens, and gradients."""
    batch, real = inputs(padding, is_pair)
    model.zero_grad()
    logits = model(**batch, use_cache=False).logits[real]
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def generated(model, is_pair: bool, **options) -> torch.Tensor:
    """The logits of five steps after a batch with padding on the left."""
    batch, _ = inputs(OF_SIDE["left"], is_pair)
    batch.pop("decoder_input_ids", None)
    length = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 1}
    return torch.stack(
        model.generate(**batch, **length, **options, return_dict_in_generate=True, output_logits=True).logits
    )


def assert_close(what: str, found: torch.Tensor, expected: torch.Tensor, size: float | None = None) -> None:
    size = expected.abs().max().item() if size is None else size
    error = (found - expected).abs().max().item()
    assert error <= TOLERANCE * size, f"{what} is off by {error:.2g} of {size:.2g}"


def is_refusal(error: Exception) -> bool:
    """Ours, or that of a family whose attention is looked up in a table of its own when the model is built."""
    ours = isinstance(error, ValueError) and 'attn_implementation="llmfast"' in str(error)
    return ours or (isinstance(error, KeyError) and error.args == ("llmfast",))


def test_a_family_agrees_with_eager_attention_or_is_refused(family):
    """Traps: a cross-attention that takes the padding of keys for that of queries; chunks that become one; a window or
    a sink that is dropped; a class that is chosen when the model is built, and has no causal mask."""
    register()
    try:
        check_family(*family)
    except (ValueError, KeyError) as error:
        if not is_refusal(error):
            raise


def check_family(kind: str, name: str, is_pair: bool) -> None:
    eager = build(kind, name, "eager")
    ours = build(kind, name, "llmfast")
    ours.load_state_dict(eager.state_dict())
    for side, padding in OF_SIDE.items():
        expected, found = outputs(eager, padding, is_pair), outputs(ours, padding, is_pair)
        assert found.keys() == expected.keys(), side
        largest = max(value.abs().max().item() for part, value in expected.items() if part != "logits")
        for part, value in expected.items():
            assert_close(f"{side}: {part}", found[part], value, None if part == "logits" else largest)
    for cache in ({}, {"cache_implementation": "static"}):
        try:
            expected = generated(eager, is_pair, **cache)
        except Exception:
            continue  # What eager attention cannot do either.
        assert_close(f"generation {cache}", generated(ours, is_pair, **cache), expected)


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_the_comparison_sees_one_key_too_many(kind):
    """A comparison that everything passes proves nothing."""
    name, is_pair = {"llama": ("LlamaForCausalLM", False), "bart": ("BartForConditionalGeneration", True)}[kind]
    model = build(kind, name, "eager")
    expected = outputs(model, slice(4), is_pair)["logits"]
    found = outputs(model, slice(3), is_pair)["logits"][-len(expected) :]
    with pytest.raises(AssertionError, match="is off by"):
        assert_close("logits", found, expected)


def test_no_family_is_left_out_without_a_reason():
    known = {kind for kind, _, _ in families()}
    assert {kind for kind, _, _ in FAMILIES} >= SAMPLE & set(transformers.CONFIG_MAPPING)
    assert len(FAMILIES) > 4 * len(NOT_TINY)
    assert all(reason for reason in NOT_TINY.values())
    if transformers.__version__ == "5.23.0":  # Of which the tables name nothing that does not exist.
        assert (NOT_TINY.keys() | CHANGES.keys()) <= known


def llama(**settings):
    torch.manual_seed(0)
    config = configuration("llama", **settings)
    config._attn_implementation = "eager"
    eager = transformers.LlamaForCausalLM(config).eval()
    randomize(eager)
    register()
    changed = copy.deepcopy(config)
    changed._attn_implementation = "llmfast"
    ours = transformers.LlamaForCausalLM(changed).eval()
    ours.load_state_dict(eager.state_dict())
    return eager, ours


@torch.no_grad()
def test_masks_that_a_user_gives_are_kept():
    """Boolean and additive masks (B, 1, S, T), and several sequences in a row told apart by their positions."""
    eager, ours = llama()
    tokens = inputs(OF_SIDE["none"], False)[0]["input_ids"]
    seen = torch.ones(13, 13).tril().bool().expand(2, 1, 13, 13).clone()
    seen[:, :, 5:, :3] = False
    added = torch.zeros(2, 1, 13, 13).masked_fill(~seen, torch.finfo(torch.float32).min)
    for mask in (seen, added, added * 1e-38):  # the last is a bias, not a mask
        given = mask if mask.dtype != torch.bool else added
        expected = eager(input_ids=tokens, attention_mask=given).logits
        assert_close("logits", ours(input_ids=tokens, attention_mask=mask).logits, expected)
    positions = torch.cat([torch.arange(6), torch.arange(7)]).expand(2, 13)
    expected = eager(input_ids=tokens, position_ids=positions, use_cache=False).logits
    assert_close("packed", ours(input_ids=tokens, position_ids=positions, use_cache=False).logits, expected)


@torch.no_grad()
def test_attention_weights_are_given_when_they_are_asked_for():
    """Trap: None in their place."""
    eager, ours = llama()
    batch, _ = inputs(OF_SIDE["right"], False)
    expected = eager(**batch, output_attentions=True).attentions
    found = ours(**batch, output_attentions=True).attentions
    real = batch["attention_mask"].bool()
    for theirs, mine in zip(expected, found, strict=True):
        torch.testing.assert_close(mine.transpose(1, 2)[real], theirs.transpose(1, 2)[real])


@pytest.mark.parametrize("kind", ["afmoe", "bart", "gpt2"])
@torch.no_grad()
def test_attention_weights_of_families_that_do_not_ask_their_layers(kind):
    """Traps: an empty tuple in place of GPT-2's weights; a layer that needs its result contiguous."""
    register()
    _, name, is_pair = next(each for each in FAMILIES if each[0] == kind)
    batch, _ = inputs(OF_SIDE["none"], is_pair)
    models = [build(kind, name, implementation) for implementation in ("eager", "llmfast")]
    expected, found = (model(**batch, use_cache=False, output_attentions=True) for model in models)
    for part in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"):
        for theirs, mine in zip(expected.get(part) or (), found.get(part) or (), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert any(found.get(part) for part in ("attentions", "cross_attentions"))


@torch.no_grad()
def test_a_whole_mask_is_computed_in_plain_pytorch_and_said_once():
    from llmfast.integrations import transformers_attention as module

    _, ours = llama()
    tokens = inputs(OF_SIDE["none"], False)[0]["input_ids"]
    mask = torch.ones(13, 13).tril().bool().expand(2, 1, 13, 13)
    module._said.clear()
    with pytest.warns(UserWarning, match=r'"llmfast" computes in plain PyTorch here: the model\'s mask'):
        ours(input_ids=tokens, attention_mask=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(input_ids=tokens, attention_mask=mask)
        ours(**inputs(OF_SIDE["left"], False)[0])


@torch.no_grad()
def test_a_compiled_model_computes_the_same():
    eager, ours = llama()
    compiled = torch.compile(ours, backend="aot_eager")
    for side in ("none", "left"):
        batch, real = inputs(OF_SIDE[side], False)
        assert_close(side, compiled(**batch, use_cache=False).logits[real], eager(**batch).logits[real])
