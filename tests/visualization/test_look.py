"""``llmfast look``: attention as the model computes it, in bounded memory, as pictures, a page and scores."""

import base64
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from looked_at import decoder, prompt

import llmfast.models.attention as attention_module
from llmfast.cli import main
from llmfast.visualization import attention
from llmfast.visualization.attention import attention_rows
from llmfast.visualization.heads import prompt_scores, repeat_scores
from llmfast.visualization.maps import attention_maps, write_page

CONFIGS = {
    "gpt2": {"positions": "learned", "norm": "layer", "biases": "all", "activation": "gelu_tanh"},
    "grouped": {"kv_heads": 2, "qk_norm": True, "smear": True},
    "sliding": {"kv_heads": 1, "window": 5, "window_pattern": "sf"},
    "sinks": {"kv_heads": 2, "attention_sinks": True},
    "chunks": {"kv_heads": 2, "attention_chunk": 5, "window_pattern": "cf"},
    "dropout": {"dropout": 0.5},
}


def whole(model, tokens, **options):
    """The weights (layers, heads, S, S), put together from their rows."""
    layers = {}
    for rows in attention_rows(model, tokens, **options):
        empty = torch.zeros(rows.weights.shape[0], len(tokens), len(tokens), dtype=rows.weights.dtype)
        found = layers.setdefault(rows.layer, empty)
        _, count, keys = rows.weights.shape
        found[:, rows.first_row : rows.first_row + count, rows.first_key : rows.first_key + keys] = rows.weights
    return torch.stack(list(layers.values()))


def of_own_queries_and_keys(model, tokens, monkeypatch):
    """The weights by their definition in float64, of the tensors that the model itself gives to its attention; and
    what those weights make of its values, less what its attention made."""
    calls = []

    def recording(q, k, v, **options):
        out = original(q, k, v, **options)
        starts = options.get("cu_seqlens_q")
        if starts is not None:  # the tokens of one row, laid end to end
            q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
        options |= {"starts": starts}
        in_place = out if starts is None else out.transpose(0, 1)[None]
        calls.append((q.double(), k.double(), v.double(), options, in_place))
        return out

    original = attention_module.flash_attention
    with monkeypatch.context() as patched, torch.no_grad(), model.evaluating():
        patched.setattr(attention_module, "flash_attention", recording)
        model(torch.tensor([tokens]))
    weights, errors = [], []
    for q, k, v, options, out in calls:
        window, sinks, starts = options["window"], options["sinks"], options["starts"]
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
        distance = torch.arange(len(tokens))[:, None] - torch.arange(len(tokens))
        seen = (distance >= 0) & (distance <= (window[0] if window else len(tokens)))
        if starts is not None:
            chunk = torch.searchsorted(starts, torch.arange(len(tokens)), right=True)
            seen &= chunk[:, None] == chunk
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks.double()[:, None, None].expand(1, -1, len(tokens), 1)), -1)
        weights.append(scores.softmax(-1)[0][..., : len(tokens)])
        errors.append((weights[-1] @ v[0] - out[0]).abs().max() / v.abs().max())
    return torch.stack(weights), max(errors)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_those_of_the_models_own_queries_and_keys(name, dtype, monkeypatch):
    """Traps: a head reads the keys of another group; a window that is one too wide; dropout in what is shown."""
    model, tokens = decoder(dtype, **CONFIGS[name]), prompt()
    assert model.training
    monkeypatch.setattr(attention, "BLOCK_ELEMENTS", 4 * len(tokens) * 7)  # several blocks, the last one shorter
    found = whole(model, tokens)
    assert model.training
    wanted, error = of_own_queries_and_keys(model, tokens, monkeypatch)
    assert found.shape == wanted.shape == (3, 4, 37, 37)
    # A score is a sum of D products; its relative error becomes one of the weight, times the score's size.
    allowed = 64 * torch.finfo(dtype).eps
    assert (found.double() - wanted).abs().max() < allowed
    assert error < allowed
    assert torch.equal(found == 0, wanted == 0)


def test_chosen_layers_and_heads_come_in_their_order():
    model, tokens = decoder(kv_heads=2), prompt()
    some = whole(model, tokens, layers=[2, 0], heads=[3, 1])
    torch.testing.assert_close(some, whole(model, tokens)[[0, 2]][:, [3, 1]], rtol=0, atol=1e-6)
    maps = attention_maps(model, tokens, layers=[2, 0], heads=[3, 1])
    torch.testing.assert_close(maps.pictures, some[[1, 0]], rtol=0, atol=1e-6)


def transformers_models():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = {"intermediate_size": 48, "max_position_embeddings": 64}
    gpt2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    torch.manual_seed(0)
    yield transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2))
    sliding = {"sliding_window": 5, "num_key_value_heads": 2}
    yield transformers.MistralForCausalLM(transformers.MistralConfig(**sizes, **llama, **sliding))


def test_a_model_of_transformers_has_the_weights_that_it_has_as_a_decoder(tmp_path):
    from llmfast.integrations.huggingface import load_huggingface

    for number, model in enumerate(transformers_models()):
        implementation = model.config._attn_implementation
        tokens = prompt()
        found = whole(model, tokens)
        assert model.config._attn_implementation == implementation
        model.save_pretrained(tmp_path / str(number))
        ours = load_huggingface(tmp_path / str(number))
        assert found.shape == (2, 4, 37, 37)
        torch.testing.assert_close(found, whole(ours, tokens), rtol=0, atol=1e-5)
        scores, own = prompt_scores(model, tokens), prompt_scores(ours, tokens)
        for name in scores:
            torch.testing.assert_close(scores[name], own[name], rtol=0, atol=1e-3)


def test_scores_are_their_definitions():
    model, tokens = decoder(window=9), prompt()
    weights, length = whole(model, tokens).double(), len(tokens)
    scores = prompt_scores(model, tokens)
    for layer in range(3):
        for head in range(4):
            w = weights[layer, head].numpy()
            entropy = np.mean([-sum(p * math.log2(p) for p in row if p > 0) for row in w])
            distance = np.mean([sum(p * (i - j) for j, p in enumerate(row)) for i, row in enumerate(w)])
            first = np.mean([w[i, 0] for i in range(1, length)])
            previous = np.mean([w[i, i - 1] for i in range(1, length)])
            found = [float(each[layer, head]) for each in scores.values()]
            assert found == pytest.approx([entropy, distance, first, previous], rel=1e-5)


def rotating(distance_of_interest):
    """A model of one head that looks ``distance_of_interest`` back, whatever the tokens are: constant queries and keys,
    rotated against each other."""
    model = decoder(layers=1, heads=1, width=8, context=64, biases="qkv", dtype=torch.float64)
    layer, angle = model.blocks[0].attention.qkv, 1.0 * distance_of_interest
    with torch.no_grad():
        layer.weight.zero_(), layer.bias.zero_()
        half = 4  # the first pair turns by one radian a token
        layer.bias[0] = 1e3
        layer.bias[8], layer.bias[8 + half] = math.cos(angle) * 1e3, math.sin(angle) * 1e3
    return model


@pytest.mark.parametrize(("back", "name"), [(8, "duplicate_token"), (7, "induction"), (1, "previous_token")])
def test_a_head_made_to_look_back_has_the_score_of_that(back, name):
    """Trap: induction is weight on the token after the earlier one, one less far back than the repeat."""
    model = rotating(back)
    scores = prompt_scores(model, prompt(40)[:16]) | repeat_scores(model, range(60), start=[5], length=8)
    expected = {"duplicate_token": 8, "induction": 7}
    for each, distance in expected.items():
        assert float(scores[each]) == pytest.approx(float(distance == back), abs=1e-6)
    assert (float(scores["previous_token"]) > 0.99) == (name == "previous_token")


def test_scores_on_repeats_come_from_the_seed_alone():
    model = decoder()
    first, again, other = (repeat_scores(model, range(60), seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


PROGRAM = """
import resource, torch
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.visualization import attention, maps
model = Decoder(DecoderConfig(vocab_size=60, width=16, layers=2, heads=2, context=16384))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
maps.attention_maps(model, list(range(60)))
before = peak()
found = maps.attention_maps(model, [i % 60 for i in range(16384)], layers=[1], heads=[0])
print(peak() - before, found.weights.shape[-1], float(found.weights.sum(-1).max()))
"""


def test_a_prompt_of_16k_tokens_fits_in_memory():
    """Trap: the weights of one head alone are 1 GiB."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    mebibytes, kept, total = map(float, run.stdout.split())
    assert mebibytes < 300
    assert kept == 2**20 // 16384
    assert 0 < total < 1 + 1e-5


def test_a_long_prompt_keeps_the_strongest_weights(monkeypatch):
    from llmfast.visualization import maps

    model, tokens = decoder(window=20), prompt(60)
    weights = whole(model, tokens)
    monkeypatch.setattr(maps, "MOST_ENTRIES", 3 * 4 * 60 * 5)
    monkeypatch.setattr(maps, "MOST_CELLS", 20)
    monkeypatch.setattr(attention, "BLOCK_ELEMENTS", 4 * 60 * 7)
    found = attention_maps(model, tokens)
    assert found.weights.shape == (3, 4, 60, 5)
    torch.testing.assert_close(found.weights, weights.topk(5, -1).values, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights.gather(-1, found.keys.long()), found.weights, rtol=0, atol=1e-6)
    pooled = weights.view(3, 4, 20, 3, 20, 3).amax((3, 5))
    torch.testing.assert_close(found.pictures, pooled, rtol=0, atol=1e-6)


def test_the_page_holds_the_weights_and_needs_nothing_else(tmp_path):
    """Traps: a token that ends the script, and an address that a browser would ask for."""
    model, tokens = decoder(), prompt(9)
    maps = attention_maps(model, tokens, layers=[1])
    texts = ["</script><b>", "$x$", "\\n", "雪", '"', "&", "<!--", "\u2028", " a"]
    write_page(maps, texts, tmp_path / "page.html", title="<i>")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    content = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1)
    data = json.loads(content)
    assert data["texts"] == texts
    shape = (1, 4, 9, 9)
    weights = np.frombuffer(base64.b64decode(data["weights"]), "<f4").reshape(shape)
    keys = np.frombuffer(base64.b64decode(data["keys"]), "<i4").reshape(shape)
    placed = np.zeros(shape, np.float32)
    np.put_along_axis(placed, keys, weights, -1)
    np.testing.assert_allclose(placed, whole(model, tokens, layers=[1]).numpy(), atol=1e-7)
    assert not re.search(r"https?:|src=|href=|@import|url\(", page)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "The fox " * 30], "the model's context is 16"),
        (["--prompt", "fox", "--layers", "1"], "no layer 1; choose from 0 to 0"),
        (["--prompt", "fox", "--heads", "0", "2"], "no head 2; choose from 0 to 1"),
        ([], "--prompt"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, capsys, arguments, words):
    assert main(["look", "attention", str(run), *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_run_is_one_sentence(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (file,) = (tmp_path / "run").glob("checkpoints/step-000002/model.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    assert main(["look", "attention", str(tmp_path / "run"), "--prompt", "fox", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "damaged" in error
    assert error.count("\n") == 1
