"""GGUF files: what is written by the ``gguf`` package reads back as the model that was written."""

import json

import pytest
import torch

from llmfast.inference.config import Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.prompts import beginning, end_tokens
from llmfast.integrations.gguf import load_gguf
from llmfast.models.config import DecoderConfig, RopeScaling
from llmfast.models.decoder import Decoder
from llmfast.models.rotary import frequencies
from llmfast.tokenizer import Tokenizer
from llmfast.tokenizer.huggingface.byte_text import token_text

gguf = pytest.importorskip("gguf")

TEXT = "the red fox and the brown dog"
# Rows of 256 numbers, which Q4_K is made of.
SHAPE = {"width": 256, "heads": 4, "layers": 2, "ff_width": 256, "context": 64, "norm_eps": 1e-5}
MODELS = {
    "gpt2": SHAPE | {"positions": "learned", "norm": "layer", "activation": "gelu_tanh", "biases": "all"},
    "llama": SHAPE | {"kv_heads": 2, "rope_base": 500_000.0, "tie_embeddings": False},
    "llama 3.1": SHAPE | {"kv_heads": 2, "rope_scaling": RopeScaling("llama3", 8.0, 32)},
}


@pytest.fixture(scope="module")
def tokenizer():
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    return Tokenizer.train([TEXT] * 3, 275, allow_smaller=True, special_tokens=specials)


def decoder(name, tokenizer):
    config = DecoderConfig(vocab_size=tokenizer.n_vocab, **MODELS[name])
    model = Decoder(config, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def their_tensors(model):
    """The tensors as llama.cpp's converter writes them: pairs of rotary columns are neighbors."""
    names = {
        "embedding": "token_embd", "positions": "position_embd", "norm": "output_norm", "head": "output",
        "attention_norm": "attn_norm", "attention.out": "attn_output", "attention.qkv": "attn_qkv",
        "feed_forward_norm": "ffn_norm", "feed_forward.up": "ffn_up", "feed_forward.down": "ffn_down",
    }  # fmt: skip
    config, found = model.config, {}

    def neighbors(rows, heads):
        return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module == "head" and config.tie_embeddings:
            continue
        if not module.startswith("blocks."):
            found[f"{names[module]}.{kind}"] = tensor
            continue
        _, layer, inner = module.split(".", 2)
        if inner == "attention.qkv" and config.gated:
            key = config.kv_heads * config.head_width
            q, k, v = tensor.split([config.heads * config.head_width, key, key])
            q, k = neighbors(q, config.heads), neighbors(k, config.kv_heads)
            found |= {f"blk.{layer}.attn_{part}.{kind}": each for part, each in zip("qkv", (q, k, v), strict=True)}
        elif inner == "feed_forward.gate_up":
            gate, up = tensor.chunk(2)
            found |= {f"blk.{layer}.ffn_gate.{kind}": gate, f"blk.{layer}.ffn_up.{kind}": up}
        else:
            found[f"blk.{layer}.{names[inner]}.{kind}"] = tensor
    if config.rope_scaling.kind == "llama3":
        plain = config.rope_base ** -(torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width)
        found["rope_freqs.weight"] = (plain / frequencies(config, config.context)).float()
    return found


def quantized(tensor, kind):
    """(bytes or numbers, type) of a tensor; Q4_K, which the package does not write, from made-up blocks."""
    types = gguf.GGMLQuantizationType
    if tensor.ndim == 1 or kind == "F32":
        return tensor.numpy(), types.F32
    if kind == "F16":
        return tensor.half().numpy(), types.F16
    if kind == "Q4_K":
        blocks = tensor.numel() // 256
        raw = torch.randint(
            256, (blocks, 144), dtype=torch.uint8, generator=torch.Generator().manual_seed(int(tensor.abs().sum()))
        )
        raw[:, :4] = torch.tensor([2e-4, 1e-3]).half().view(torch.uint8)  # the scales of scales and of offsets
        return raw.view(len(tensor), -1).numpy(), types.Q4_K
    return gguf.quantize(tensor.numpy(), types[kind]), types[kind]


def write(path, name, tokenizer, kind="F32", **changes):
    """Writes a model; returns the numbers of the tensors in the file."""
    model = decoder(name, tokenizer)
    config, architecture = model.config, name.split()[0]
    writer = gguf.GGUFWriter(path, changes.get("architecture", architecture))
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.heads)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_head_count_kv(config.kv_heads)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_freq_base(config.rope_base)
        if config.rope_scaling.kind == "llama3":
            writer.add_rope_scaling_orig_ctx_len(config.rope_scaling.original_context)
    specials = {tokenizer.encode_single_token(text): text for text in tokenizer.special_tokens_set}
    writer.add_tokenizer_model(changes.get("kind_of_tokenizer", "gpt2"))
    writer.add_tokenizer_pre("gpt-2" if architecture == "gpt2" else "llama-bpe")
    writer.add_token_list(
        [
            specials.get(each) or token_text(tokenizer.decode_single_token_bytes(each))
            for each in range(tokenizer.n_vocab)
        ]
    )
    writer.add_token_types([3 if each in specials else 1 for each in range(tokenizer.n_vocab)])
    merges = json.loads(tokenizer._to_json())["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_bos_token_id(tokenizer.encode_single_token("<|begin_of_text|>"))
    writer.add_eos_token_id(tokenizer.encode_single_token("<|end_of_text|>"))
    writer.add_eot_token_id(tokenizer.encode_single_token("<|eot_id|>"))
    writer.add_chat_template("{{ messages[0].content }}")
    held = {}
    for tensor_name, tensor in their_tensors(model).items():
        data, type_ = quantized(tensor, "F32" if tensor_name.startswith(("position", "rope")) else kind)
        writer.add_tensor(tensor_name, data, raw_dtype=type_)
        held[tensor_name] = torch.from_numpy(gguf.dequantize(data, type_).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_K"])
def test_a_model_is_read_as_it_was_written(name, kind, tokenizer, tmp_path):
    path = tmp_path / "model.gguf"
    held = write(path, name, tokenizer, kind)
    model, _ = load_gguf(path)
    original = decoder(name, tokenizer)
    assert model.config == original.config
    found = their_tensors(model)
    assert found.keys() == held.keys()
    for tensor_name, tensor in found.items():
        torch.testing.assert_close(tensor, held[tensor_name].view(tensor.shape), rtol=0, atol=0)
    tokens = torch.randint(tokenizer.n_vocab, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = float((model(tokens) - original(tokens)).pow(2).mean().sqrt() / original(tokens).std())
    bounds = {"F32": (0, 1e-6), "F16": (1e-6, 0.003), "Q8_0": (1e-4, 0.05), "Q4_0": (0.01, 0.6), "Q4_K": (0.01, 1e9)}
    assert bounds[kind][0] <= error <= bounds[kind][1]


def test_the_tokenizer_is_that_of_the_file(tokenizer, tmp_path):
    for name, begin in (("llama", "<|begin_of_text|>"), ("gpt2", None)):
        write(tmp_path / "model.gguf", name, tokenizer)
        _, found = load_gguf(tmp_path / "model.gguf")
        text = f"{TEXT}! It's 雪, 12345 dogs\n\n"
        if name == "gpt2":
            assert found.encode_ordinary("the red fox") == tokenizer.encode_ordinary("the red fox")
        assert found.decode(found.encode_ordinary(text)) == text
        assert beginning(found) == ([] if begin is None else [found.encode_single_token(begin)])
        ends = {found.encode_single_token(end) for end in ("<|end_of_text|>", "<|eot_id|>")}
        assert end_tokens(found) == ends
        assert found.files["chat_template.jinja"] == b"{{ messages[0].content }}"


@pytest.mark.parametrize("weights", [None, "nf4"])
def test_it_generates(weights, tokenizer, tmp_path):
    write(tmp_path / "model.gguf", "llama", tokenizer)
    engine = Engine.open(tmp_path / "model.gguf", device="cpu", weights=weights)
    ((reply,),) = engine.generate([TEXT], Sampling(temperature=0, max_tokens=8))
    assert len(reply.tokens) == 8 or reply.finish_reason == "stop"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "holds the architecture 'mamba'; supported are llama and gpt2"),
        ({"kind_of_tokenizer": "llama"}, "its tokenizer is of the kind 'llama'; supported is byte-level BPE"),
    ],
)
def test_other_kinds_are_refused(changes, message, tokenizer, tmp_path):
    write(tmp_path / "model.gguf", "gpt2", tokenizer, **changes)
    with pytest.raises(ValueError, match=message):
        load_gguf(tmp_path / "model.gguf")


def test_what_is_no_gguf_file_is_refused(tokenizer, tmp_path):
    path = tmp_path / "model.gguf"
    with pytest.raises(ValueError, match="does not exist"):
        Engine.open(path)
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(ValueError, match="is not a GGUF file, or damaged"):
        Engine.open(path)
    write(path, "gpt2", tokenizer)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="is not a GGUF file, or damaged"):
        Engine.open(path)
