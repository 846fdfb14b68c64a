"""The decoder: causal, equal with and without cache, sized as its configuration says, able to learn."""

import dataclasses
import doctest
import itertools
import math

import pytest
import torch
from cached import CachedRows

from llmfast.models import decoder as decoder_module
from llmfast.models.config import DecoderConfig, ExpertsConfig, RopeScaling
from llmfast.models.decoder import Decoder

SMALL = {"vocab_size": 97, "width": 32, "layers": 2, "heads": 4, "context": 24}
CONFIGS = {
    "modern": DecoderConfig(**SMALL, scale_embedding=True),
    "grouped": DecoderConfig(**SMALL, kv_heads=2, qk_norm=True, biases="qkv"),
    "untied": DecoderConfig(
        vocab_size=97, width=24, layers=1, heads=2, head_width=16, context=24, tie_embeddings=False
    ),
    "gpt2": DecoderConfig(
        **SMALL, positions="learned", norm="layer", activation="gelu_tanh", biases="all", vocab_multiple=64
    ),
    "sliding": DecoderConfig(**SMALL, window=5, window_pattern="sf", activation="geglu"),
    "smeared": DecoderConfig(**SMALL, smear=True),
    "olmo": DecoderConfig(
        **SMALL, kv_heads=2, norm_position="after", qk_norm=True, qk_norm_over="all", rope_pattern="rn"
    ),
    "gemma": DecoderConfig(
        **SMALL,
        norm_position="both",
        window=5,
        window_pattern="sf",
        window_rope_base=100.0,
        attention_scale=0.2,
        attention_softcap=0.5,
        logit_softcap=0.7,
    ),
    "cohere": DecoderConfig(
        **SMALL, norm="layer", norm_bias=False, parallel_residual=True, logit_scale=0.3, rope_interleaved=True
    ),
    "cohere, normed": DecoderConfig(
        **SMALL, kv_heads=2, norm="layer", norm_bias=False, qk_norm=True, qk_norm_over="own_head", rope_interleaved=True
    ),
    "granite": DecoderConfig(
        **SMALL, embedding_scale=3.0, residual_scale=0.4, logit_scale=0.3, attention_scale=0.1, norm_weight_offset=1.0
    ),
    "gpt_oss": DecoderConfig(
        **SMALL,
        kv_heads=2,
        window=5,
        window_pattern="sf",
        biases="all",
        attention_sinks=True,
        activation="clamped_swiglu",
        swiglu_limit=0.5,
        experts=ExpertsConfig(count=4, width=16, biases=True),
    ),
    "llama4": DecoderConfig(
        **SMALL,
        kv_heads=2,
        attention_chunk=5,
        window_pattern="cf",
        rope_pattern="rn",
        qk_l2_norm=True,
        query_temperature=0.5,
        query_temperature_tokens=3,
        experts=ExpertsConfig(
            count=4, active=1, pattern="de", score="sigmoid", normalize=False, shared_width=16, scale_input=True
        ),
    ),
    "chunks, capped": DecoderConfig(
        **SMALL, attention_chunk=5, window_pattern="c", attention_sinks=True, attention_softcap=0.5
    ),
    "experts": DecoderConfig(
        **SMALL, experts=ExpertsConfig(count=4, width=16, pattern="de", shared_width=16, shared_gate=True)
    ),
}


def decoder(config: DecoderConfig, seed: int = 0) -> Decoder:
    model = Decoder(config, generator=torch.Generator().manual_seed(seed)).double()
    if config.smear:
        torch.nn.init.constant_(model.smear.weight, 0.3)  # at 0, where it starts, it would do nothing
    for name, parameter in model.named_parameters():
        if config.attention_sinks and name.endswith(("bias", "sinks")):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.fixture(params=CONFIGS)
def model(request):
    return decoder(CONFIGS[request.param])


@pytest.fixture
def tokens():
    return torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(1))


def gradients(model: Decoder, *inputs, **options) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(*inputs, **options).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_the_example_is_true():
    assert doctest.testmod(decoder_module).failed == 0


def test_no_token_sees_a_later_one(model, tokens):
    logits = model(tokens)
    changed = tokens.clone()
    changed[:, 13:] = (changed[:, 13:] + 1) % 97
    torch.testing.assert_close(model(changed)[:, :13], logits[:, :13], rtol=1e-12, atol=1e-12)
    assert not torch.equal(model(changed)[:, 13], logits[:, 13])


@pytest.mark.parametrize("steps", [[24], [1] * 24, [5, 1, 1, 17]])
@pytest.mark.parametrize("page_size", [1, 7, 24])
def test_reading_with_a_cache_gives_the_same_logits(model, tokens, steps, page_size):
    cached = CachedRows(model, 2, page_size)
    parts = [cached.read(part) for part in tokens.split(steps, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-9, atol=1e-9)


def test_the_loss_is_the_cross_entropy_of_the_logits(model, tokens):
    targets = tokens.roll(-1, dims=1)
    targets[0, :5] = -100
    expected = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.eval()(tokens, targets), expected)


def test_documents_in_one_batch_do_not_see_each_other(model, tokens):
    """Packing without a mask, or with positions that run on, is a silent error."""
    model.eval()
    cuts = [0, 10, 24, 24, 31, 48]  # the rows end at 24 and 48; one document is empty
    packed = model(tokens, cu_seqlens=torch.tensor(cuts, dtype=torch.int32)).flatten(0, 1)
    for start, end in itertools.pairwise(cuts):
        alone = model(tokens.flatten()[None, start:end])[0] if end > start else packed[start:end]
        torch.testing.assert_close(packed[start:end], alone, rtol=1e-9, atol=1e-9)


def test_a_window_hides_what_lies_before_it(tokens):
    config = dataclasses.replace(CONFIGS["sliding"], layers=1, window_pattern="s")
    model = decoder(config)
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 97
    same = (model(tokens) == model(changed)).all(-1)[0]
    assert same.tolist() == [not 3 <= position < 3 + 5 for position in range(24)]


def test_a_chunk_hides_what_lies_before_it(tokens):
    """The last token of a chunk sees its first, and the next token nothing of it, in each document."""
    model = decoder(dataclasses.replace(CONFIGS["chunks, capped"], layers=1))
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 97
    cuts = torch.tensor([0, 10, 24, 24, 31, 48], dtype=torch.int32)
    for cu_seqlens, ends in ((None, (15, 15)), (cuts, (15, 17))):
        found = (model(changed, cu_seqlens=cu_seqlens) != model(tokens, cu_seqlens=cu_seqlens)).any(-1)
        for row, end in enumerate(ends):
            assert found[row].nonzero().flatten().tolist() == list(range(12, end))


def test_rows_that_fill_up_the_table_are_never_predicted_and_never_learn(tokens):
    """Left in the softmax, as is common, they take probability from the real tokens."""
    model = decoder(CONFIGS["gpt2"])
    assert model.embedding.weight.shape[0] == 128
    assert model(tokens).shape[-1] == 97
    before = model(tokens, tokens)
    assert gradients(model, tokens, tokens)["embedding.weight"][97:].abs().max() == 0
    with torch.no_grad():
        model.embedding.weight[97:] = 1e3
    assert torch.equal(model(tokens, tokens), before)


@pytest.mark.parametrize("choice", ["selective", "full"])
def test_checkpointing_changes_no_gradient(model, tokens, choice):
    expected = gradients(model, tokens, tokens)
    model.activation_checkpointing = choice
    for name, gradient in gradients(model, tokens, tokens).items():
        assert torch.equal(gradient, expected[name]), name


def test_checkpointing_repeats_the_same_dropout(tokens):
    model = decoder(dataclasses.replace(CONFIGS["gpt2"], dropout=0.2))
    found = {}
    for choice in ("none", "selective", "full"):
        model.activation_checkpointing = choice
        torch.manual_seed(5)
        found[choice] = gradients(model, tokens, tokens)["blocks.0.attention.qkv.weight"]
    assert torch.equal(found["none"], found["full"])
    assert torch.equal(found["none"], found["selective"])


def test_dropout_acts_in_training_only(tokens):
    """A dropout whose result is thrown away, or that goes on in evaluation, is a known silent bug."""
    model = decoder(dataclasses.replace(CONFIGS["gpt2"], dropout=0.5))
    plain = decoder(CONFIGS["gpt2"])
    assert torch.equal(model.eval()(tokens), plain(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    with model.evaluating():
        assert torch.equal(model(tokens), plain(tokens))
    assert model.blocks[0].training
    for part in ("dropout", "blocks.0.dropout"):
        model.get_submodule(part).eval()
    model.blocks[1].eval()
    assert not torch.equal(model(tokens), model(tokens))  # what is left: attention's own
    model.blocks[0].attention.eval()
    assert torch.equal(model(tokens), plain(tokens))


@pytest.mark.parametrize("name", ["modern", "gpt2", "smeared", "experts"])
def test_it_compiles_as_one_graph(name, tokens):
    torch._dynamo.reset()
    model = decoder(CONFIGS[name])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, tokens), model(tokens, tokens), rtol=1e-12, atol=1e-12)


def test_a_decoder_from_tensors_is_the_one_they_were_taken_from(model, tokens):
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
    if not model.config.tie_embeddings:
        tensors["head.weight"] = model.head.weight.detach()
    again = Decoder.from_tensors(model.config, tensors)
    torch.testing.assert_close(again(tokens), model(tokens), rtol=1e-6, atol=1e-6)  # its cosines are float32
    with pytest.raises(ValueError, match=r"do not fit the model's configuration: norm\.weight"):
        Decoder.from_tensors(model.config, {name: t for name, t in tensors.items() if name != "norm.weight"})


def test_the_configuration_counts_the_parameters(model):
    assert model.config.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["modern", "grouped", "untied", "gpt2"])
def test_training_flops_are_those_of_the_matrix_products(name, tokens):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = decoder(CONFIGS[name])
    S = model.config.context
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.float()(tokens)
    # The counter sees all S keys of every query; the configuration counts the causal half.
    attention = 4 * model.config.layers * model.config.heads * model.config.head_width * S / 2
    expected = 3 * (counter.get_total_flops() / tokens.numel() - attention)
    assert model.config.flops_per_token() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("choice", "std"),
    [("linear", math.sqrt(2 / 2128)), ("normal", 0.02), ("fan_in", 128**-0.5), ("unit", 1.0)],
)
def test_a_tied_table_has_the_variance_that_was_chosen(choice, std):
    config = DecoderConfig(vocab_size=2000, width=128, layers=1, embedding_init=choice)
    table = Decoder(config, generator=torch.Generator().manual_seed(0)).embedding.weight
    assert table.abs().max() <= 3 * std
    assert table.std().item() == pytest.approx(std * 0.9866, rel=0.01)  # a normal cut at 3 sigma is that narrow


def test_matrices_start_with_the_variance_that_was_chosen():
    for choice, std in {"fan_in": 128**-0.5, "linear": (2 / (128 + 384)) ** 0.5, "normal": 0.02}.items():
        config = DecoderConfig(width=128, layers=1, matrix_init=choice, biases="all")
        attention = Decoder(config, generator=torch.Generator().manual_seed(0)).blocks[0].attention
        assert attention.qkv.weight.std().item() == pytest.approx(0.9866 * std, rel=0.02)
        out_std = 0.02 if choice == "normal" else 128**-0.5
        assert attention.out.weight.std().item() == pytest.approx(0.9866 * out_std / 2**0.5, rel=0.02)
        assert attention.qkv.bias.abs().max() == 0


@pytest.mark.parametrize("name", ["modern", "experts"])
def test_one_batch_is_learnt_by_heart(name, tokens):
    model = Decoder(CONFIGS[name], generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    targets = tokens.roll(-1, dims=1)
    for _ in range(150):
        loss = model(tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.eval()(tokens, targets).item() < 0.02


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
        ({"dropout": 1.0}, "model.dropout must be at least 0 and below 1"),
        ({"window": 0}, "model.window must be at least 1"),
        ({"window_pattern": "sx"}, "model.window_pattern is made of the letters s, c and f, got 'sx'"),
        ({"attention_chunk": 8}, "model.attention_chunk 8 and model.window_pattern 's': layers with the letter c need"),
        ({"window_pattern": "cf"}, "model.attention_chunk None and model.window_pattern 'cf'"),
        ({"attention_chunk": 0, "window_pattern": "c"}, "model.attention_chunk must be at least 1, got 0"),
        ({"query_temperature": 0.1, "positions": "learned"}, "model.query_temperature needs model.positions rope"),
        ({"query_temperature": -0.1}, "model.query_temperature must be a positive number, got -0.1"),
        ({"swiglu_limit": 0.0}, "model.swiglu_limit must be a positive number, got 0.0"),
        ({"rope_scaling": RopeScaling("linear", 0.5)}, "factor must be at least 1, got 0.5"),
        ({"rope_scaling": RopeScaling("yarn", 2.0), "positions": "learned"}, "needs model.positions rope"),
        (
            {"experts": ExpertsConfig(count=2, active=3)},
            "active must be from 1 to model.experts.count 2, got 3",
        ),
        ({"experts": ExpertsConfig(count=2), "activation": "gelu"}, "need a gated model.activation"),
        ({"experts": ExpertsConfig(count=2, shared_gate=True)}, "set model.experts.shared_width"),
    ],
)
def test_shapes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**settings)
