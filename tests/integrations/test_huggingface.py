"""Hugging Face folders and ours hold the same models: equal logits both ways, for every family."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llmfast import cli
from llmfast.finetuning import load_adapter
from llmfast.integrations.huggingface import load_huggingface, save_huggingface
from llmfast.integrations.huggingface.config import from_config
from llmfast.models.config import DecoderConfig, ExpertsConfig, RopeScaling
from llmfast.models.decoder import Decoder
from llmfast.models.folder import load_decoder

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.5,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e5, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "rope_theta": 5e5,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
THEIRS = {
    "gpt2": ("GPT2", {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "llama": ("Llama", LLAMA | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, linear": (
        "Llama",
        LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama, dynamic": (
        "Llama",
        LLAMA
        | {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        },
    ),
    "mistral": ("Mistral", LLAMA | {"sliding_window": 7, "head_dim": 16}),
    "qwen2": ("Qwen2", LLAMA | SLIDING | {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2Moe",
        LLAMA | MOE | {"shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
    ),
    "qwen2_moe, sliding": (
        "Qwen2Moe",
        LLAMA | MOE | SLIDING | {"shared_expert_intermediate_size": 40, "max_window_layers": 2},
    ),
    "qwen3_moe": ("Qwen3Moe", LLAMA | MOE | {"head_dim": 16, "mlp_only_layers": [1]}),
    "gemma": ("Gemma", LLAMA | {"head_dim": 16, "pad_token_id": 0}),
    "phi3": ("Phi3", LLAMA | {"sliding_window": 7, "pad_token_id": 0}),
}
MOE_OF_32 = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = LLAMA | {"head_dim": 16, "pad_token_id": 0, "sliding_window": 7, "query_pre_attn_scalar": 20}
BY_LAYER = {"layer_types": TYPES, "sliding_window": 7}
THEIRS |= {
    "smollm3": ("SmolLM3", LLAMA | {"no_rope_layers": [1, 0, 1], "pad_token_id": 0}),
    "smollm3, sliding": (
        "SmolLM3",
        LLAMA | {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 7, "pad_token_id": 0},
    ),
    "olmo2": ("Olmo2", LLAMA | {"eos_token_id": 2}),
    "olmo3": ("Olmo3", LLAMA | BY_LAYER | {"rope_scaling": YARN, "eos_token_id": 2}),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": (
        "Gemma3Text",
        GEMMA | BY_LAYER | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": 4.0},
    ),
    "cohere": ("Cohere", LLAMA | {"eos_token_id": 2, "logit_scale": 0.3}),
    "cohere, untied": ("Cohere", LLAMA | {"eos_token_id": 2, "tie_word_embeddings": False}),
    "cohere, normed": ("Cohere", LLAMA | {"eos_token_id": 2, "use_qk_norm": True}),
    "cohere2": ("Cohere2", LLAMA | BY_LAYER | {"eos_token_id": 2, "logit_scale": 1.0}),
    "granite": ("Granite", LLAMA | GRANITE),
    "granite, tied": ("Granite", LLAMA | GRANITE | {"tie_word_embeddings": True}),
}
GPT_OSS = LLAMA | MOE_OF_32 | {"head_dim": 16, "sliding_window": 7, "rope_parameters": YARN | {"truncate": False}}
THEIRS |= {
    "gpt_oss": ("GptOss", GPT_OSS | {"swiglu_limit": 1.5, "swiglu_alpha": 1.3}),
    "gpt_oss, without biases": ("GptOss", GPT_OSS | {"attention_bias": False, "layer_types": TYPES[::-1]}),
}
LLAMA4 = LLAMA | {
    "head_dim": 16,
    "intermediate_size": 24,
    "intermediate_size_mlp": 40,
    "num_local_experts": 4,
    "no_rope_layers": [1, 0, 1],
    "attention_chunk_size": 7,
}
THEIRS |= {
    "llama4": ("Llama4Text", LLAMA4 | {"interleave_moe_layer_step": 2, "rope_parameters": LLAMA3}),
    "llama4, tuned": (
        "Llama4Text",
        LLAMA4 | {"num_experts_per_tok": 2, "use_qk_norm": False, "floor_scale": 4, "attn_scale": 0.5},
    ),
}
YARN_WITH_MSCALE = LLAMA | {"rope_parameters": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7}}


def their_model(name: str):
    prefix, settings = THEIRS.get(name, ("Llama", YARN_WITH_MSCALE))
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**settings)
    config._attn_implementation = "eager"  # Of Gemma 2, older versions run SDPA, which leaves out its softcap.
    kind = {"GPT2": "GPT2LMHeadModel"}.get(prefix, f"{prefix.removesuffix('Text')}ForCausalLM")
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():  # biases and norms too, which start the same everywhere
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


def read_by_transformers(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def tokens() -> torch.Tensor:
    return torch.randint(120, (2, 40), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_logits(ours: Decoder, theirs) -> None:
    found, expected = ours.eval()(tokens()), theirs(tokens()).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", THEIRS)
def test_both_directions_give_equal_logits(name, tmp_path):
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if name == "mixtral" else "1GB")
    ours = load_huggingface(tmp_path / "theirs")
    assert_same_logits(ours, theirs)
    # What Phi-3 computes is said as Mistral, where nobody asks for the family.
    options = {"max_shard_size": "20KB" if name == "qwen3" else "1GB", "family": "phi3" if name == "phi3" else None}
    save_huggingface(ours, tmp_path / "again", **options)
    again = read_by_transformers(tmp_path / "again")
    assert type(again) is type(theirs)
    assert_same_logits(ours, again)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)
    before, after = (
        from_config(json.loads((tmp_path / each / "config.json").read_text())) for each in ("theirs", "again")
    )
    assert before == after


@pytest.mark.parametrize("name", [name for name in THEIRS if "moe" not in name])
def test_gradients_are_those_of_transformers(name, tmp_path):
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path / "model")
    ours, at = load_huggingface(tmp_path / "model").eval(), tokens()
    weights = torch.linspace(-1, 1, 120)
    theirs.get_input_embeddings().padding_idx = None  # whose row would get no gradient
    (ours(at) * weights).sum().backward()
    (theirs(at).logits * weights).sum().backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    expected = load_huggingface(tmp_path / "gradients")
    size = max(each.abs().max().item() for each in expected.parameters())
    for (key, parameter), (_, gradient) in zip(ours.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-4, atol=1e-5 * size, msg=lambda s, k=key: f"{k}: {s}"
        )


# Of Llama 4, transformers counts padding where it tunes the temperature.
@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in THEIRS if not name.endswith(("dynamic", "tuned"))])
def test_padding_on_either_side_changes_no_token(name, tmp_path):
    """Theirs with padding beside ours without."""
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path)
    row, ours = tokens()[:1], load_huggingface(tmp_path).eval()
    expected = ours(row)
    for padding in ((5, 0), (0, 5)):
        mask = torch.nn.functional.pad(torch.ones_like(row), padding)
        at = torch.nn.functional.pad(row, padding)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        found = theirs(at, attention_mask=mask, position_ids=positions).logits[mask.bool()]
        torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_factors_of_yarn_are_read_as_one(tmp_path):
    theirs = their_model("yarn with mscale")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_huggingface(tmp_path / "theirs")
    assert_same_logits(ours, theirs)
    save_huggingface(ours, tmp_path / "again")
    assert_same_logits(ours, read_by_transformers(tmp_path / "again"))


ADAPTED = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "granite, tied": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens"],
    "granite": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens", "lm_head"],
    "cohere": ["q_proj", "k_proj", "v_proj", "down_proj"],
    "cohere2": ["q_proj", "k_proj", "v_proj", "down_proj"],
    "gemma": ["q_proj", "v_proj", "up_proj", "embed_tokens"],
    "gemma3": ["q_proj", "k_proj", "v_proj", "up_proj"],
    "olmo2": ["q_proj", "v_proj", "down_proj"],
    "phi3": ["qkv_proj", "down_proj"],
    "gpt_oss": ["q_proj", "k_proj", "o_proj"],
    "llama4": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapter_of_the_original_has_its_effect_on_the_import(name, tmp_path):
    """Trap: multipliers and orders of columns that went into the weights, under which the adapter is another one."""
    peft = pytest.importorskip("peft")
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path / "base")
    norms = ["input_layernorm"] if name != "olmo2" else ["post_attention_layernorm"]
    settings = peft.LoraConfig(r=2, target_modules=ADAPTED[name], modules_to_save=norms)
    tuned = peft.get_peft_model(theirs, settings).eval()
    plain = theirs(tokens()).logits
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(tmp_path / "adapter")  # with the frozen tables that have updates, as PEFT writes them
    ours = load_adapter(load_huggingface(tmp_path / "base"), tmp_path / "adapter")
    assert not torch.allclose(plain, tuned(tokens()).logits, rtol=0.1)
    assert_same_logits(ours, tuned)
    if "embed_tokens" in ADAPTED[name]:
        other = load_huggingface(tmp_path / "base")
        other.embedding.weight[0, 0] += 1
        with pytest.raises(ValueError, match="differs from the base: the adapter is of another model"):
            load_adapter(other, tmp_path / "adapter")


MOVED = {  # settings that the family lacks, and the family
    "scaled embedding": ({"scale_embedding": True}, "llama"),
    "scales": (
        {"embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 0.3, "attention_scale": 0.1, "biases": "qkv"},
        "qwen2",
    ),
    "scales, normed": ({"attention_scale": 0.1, "qk_norm": True, "norm_weight_offset": 1.0}, "qwen3"),
    "neighboring columns": ({"rope_interleaved": True, "window": 7, "kv_heads": 2}, "mistral"),
    "neighboring columns, normed": ({"rope_interleaved": True, "qk_norm": True}, "qwen3"),
    "experts": ({"residual_scale": 0.4, "experts": ExpertsConfig(count=4)}, "mixtral"),
    "experts with biases": (
        {
            "residual_scale": 0.4,
            "attention_scale": 0.1,
            "experts": ExpertsConfig(count=4, biases=True),
            "biases": "all",
            "activation": "clamped_swiglu",
            "attention_sinks": True,
        },
        "gpt_oss",
    ),
    "columns half a head apart": (
        {"norm": "layer", "norm_bias": False, "parallel_residual": True, "embedding_scale": 2.0},
        "cohere",
    ),
    "norms from 0": (
        {"scale_embedding": True, "norm_position": "both", "activation": "geglu_tanh", "head_width": 8},
        "gemma2",
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_scales_that_a_family_lacks_move_into_the_weights(name, tmp_path):
    settings, family = MOVED[name]
    config = DecoderConfig(**({"vocab_size": 120, "width": 32, "layers": 2, "context": 64} | settings))
    ours = Decoder(config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in ours.parameters():  # norms and biases, too
            torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    save_huggingface(ours, tmp_path, family=family)
    theirs = read_by_transformers(tmp_path)
    assert theirs.config.model_type == family
    assert_same_logits(ours, theirs)


OURS = {
    "scaled embedding": {"scale_embedding": True},
    "gpt2": {
        "positions": "learned",
        "norm": "layer",
        "activation": "gelu_tanh",
        "biases": "all",
        "vocab_multiple": 64,
    },
    "geglu": {"activation": "geglu_tanh", "kv_heads": 1, "head_width": 16},
    "patterned": {"biases": "qkv", "window": 4, "window_pattern": "sf"},
    "yarn": {"rope_scaling": RopeScaling("yarn", 4.0)},
    "experts": {"experts": ExpertsConfig(count=4, pattern="de", normalize=False), "qk_norm": True},
}


@pytest.mark.parametrize("name", OURS)
def test_a_model_of_ours_is_written_as_the_family_that_it_is(name, tmp_path):
    config = DecoderConfig(vocab_size=120, width=32, layers=2, context=64, norm_eps=1e-5, **OURS[name])
    ours = Decoder(config, generator=torch.Generator().manual_seed(0))
    save_huggingface(ours, tmp_path)
    assert_same_logits(ours, read_by_transformers(tmp_path))


_LLAMA4_EXPERTS = ExpertsConfig(2, 1, width=96, score="sigmoid", normalize=False, shared_width=96, scale_input=True)


@pytest.mark.parametrize(
    ("settings", "family", "said"),
    [
        ({"norm": "layer"}, None, "a llama folder cannot say model.norm 'layer'"),
        ({"smear": True}, None, "a llama folder cannot say model.smear True"),
        ({"window": 4}, "llama", "a llama folder cannot say model.window_pattern"),
        ({"experts": ExpertsConfig(count=4, score="sigmoid")}, None, "experts.score 'sigmoid'"),
        (
            {"qk_l2_norm": True, "attention_scale": 0.1, "rope_interleaved": True, "experts": _LLAMA4_EXPERTS},
            "llama4_text",
            "a llama4_text folder cannot say model.attention_scale 0.1",
        ),
        ({}, "bert", "'bert' is not a supported family; there are gpt2, llama"),
    ],
)
def test_what_a_folder_cannot_say_is_refused(settings, family, said, tmp_path):
    """Written all the same, it would load as another model without a word."""
    model = Decoder(DecoderConfig(width=32, layers=2, **settings))
    with pytest.raises(ValueError, match=said):
        save_huggingface(model, tmp_path / "out", family=family)
    assert not (tmp_path / "out").exists()


def test_a_router_s_bias_has_no_place_in_a_folder(tmp_path):
    model = Decoder(DecoderConfig(width=32, layers=1, experts=ExpertsConfig(count=4)))
    model.blocks[0].feed_forward.router.bias[0] = 1
    with pytest.raises(ValueError, match=r"router\.bias is not zero"):
        save_huggingface(model, tmp_path)


def rewrite(folder, **changes):
    file = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(file | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "bert"}, "its model_type is 'bert'; supported are gpt2, llama"),
        ({"attention_bias": True}, "attention_bias is True; supported is False"),
        ({"hidden_act": "relu"}, "its activation is 'relu'"),
        ({"num_hidden_layers": 4}, "the tensor model.layers.3.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 2}, "tensors that this model has no place for: model.layers.2"),
        ({"intermediate_size": 40}, "mlp.gate_proj.weight has the shape"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "its rope_type is 'longrope'"),
        ({"vocab_size": "many"}, "config.json cannot be used"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, said, tmp_path):
    their_model("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=said):
        load_huggingface(tmp_path)


def test_published_forms_of_a_folder_are_read(tmp_path):
    """GPT-2 as OpenAI's folder has it: no first word in the names, and masks among the tensors."""
    from safetensors.torch import load_file, save_file

    theirs = their_model("gpt2")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, file)
    ours = load_huggingface(tmp_path, vocab_multiple=64)
    assert ours.embedding.weight.shape[0] == 128
    assert_same_logits(ours, theirs)


def test_config_of_transformers_4_is_read(tmp_path):
    theirs = their_model("llama")
    theirs.save_pretrained(tmp_path)
    scaling = dict(LLAMA3)
    rewrite(tmp_path, rope_parameters=None, rope_theta=scaling.pop("rope_theta"), rope_scaling=scaling)
    assert_same_logits(load_huggingface(tmp_path), theirs)


def test_the_commands_carry_model_and_tokenizer_there_and_back(tmp_path, capsys):
    from llmfast.tokenizer import Tokenizer

    theirs = their_model("llama")
    theirs.save_pretrained(tmp_path / "theirs")
    Tokenizer.train(["ab ab abc"] * 5, 260).save(tmp_path / "theirs")
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{{ messages }}")
    assert cli.main(["model", "import", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert cli.main(["model", "info", str(tmp_path / "ours")]) == 0
    assert cli.main(["model", "export", str(tmp_path / "ours"), str(tmp_path / "back"), "--dtype", "float32"]) == 0
    capsys.readouterr()
    again = read_by_transformers(tmp_path / "back")
    with torch.no_grad():
        torch.testing.assert_close(again(tokens()).logits, theirs(tokens()).logits)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    for command, source in (("import", "theirs"), ("export", "ours")):
        assert cli.main(["model", command, str(tmp_path / source), str(tmp_path / "back")]) == 2
        assert "back exists already" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "theirs")
    assert cli.main(["model", "import", str(tmp_path / "theirs"), str(tmp_path / "new")]) == 2
    assert "holds no model" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json"])
def test_a_tokenizer_of_sentencepiece_is_told_and_travels(tmp_path, capsys, file):
    """Llama 2's folder, and Mistral's: trap, an import that fails for the tokenizer, or leaves its file behind."""
    theirs = their_model("llama")
    theirs.save_pretrained(tmp_path / "theirs")
    content = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
    if file == "tokenizer.json":
        model = {"type": "BPE", "vocab": {"<unk>": 0}, "merges": [], "byte_fallback": True}
        content = json.dumps({"model": model, "added_tokens": []}).encode()
    (tmp_path / "theirs" / file).write_bytes(content)
    assert cli.main(["model", "import", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the weights are whole, but there is no tokenizer that llmfast can use" in said
    assert ("sentencepiece" if file == "tokenizer.model" else "byte_fallback") in said
    assert "llmfast generate" not in said
    assert_same_logits(load_decoder(tmp_path / "ours"), theirs)
    assert cli.main(["generate", str(tmp_path / "ours")]) == 2
    assert file in capsys.readouterr().err
    assert cli.main(["model", "export", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / file).read_bytes() == content
