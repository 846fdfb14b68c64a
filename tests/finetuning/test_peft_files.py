"""PEFT's files, both ways: tensors equal to the bit, logits those of peft, nothing missing or left over unnoticed."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmfast.finetuning import LoraConfig, add_adapter, load_adapter, merge_and_remove, save_adapter
from llmfast.integrations.huggingface import load_huggingface
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.arange(30).view(3, 10) % 90
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def llama(tied=False):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=90, num_key_value_heads=2, tie_word_embeddings=tied, **shape)
    return transformers.LlamaForCausalLM(config).eval()


def tied_llama():
    return llama(tied=True)


def with_biases(model):
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def qwen():
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Qwen2Config(vocab_size=90, num_key_value_heads=2, tie_word_embeddings=True, **shape)
    return with_biases(transformers.Qwen2ForCausalLM(config))


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=90, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    return with_biases(transformers.GPT2LMHeadModel(config))


CASES = {
    "LoRA": (llama, {"target_modules": ["q_proj", "v_proj"]}),
    "all linear, rsLoRA": (llama, {"target_modules": "all-linear", "use_rslora": True}),
    "DoRA, patterns": (
        llama,
        {
            "target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
            "use_dora": True,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6},
            "alpha_pattern": {"up_proj": 3},
        },
    ),
    "rsLoRA, patterns": (
        llama,
        {
            "target_modules": ATTENTION,
            "use_rslora": True,
            "rank_pattern": {"o_proj": 9},
            "alpha_pattern": {"k_proj": 5},
        },
    ),
    "expression, in full": (
        llama,
        {"target_modules": r".*layers\.1\..*(q|up)_proj", "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "tied, in full": (
        tied_llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "untied by training": (tied_llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied table": (tied_llama, {"target_modules": ["q_proj", "embed_tokens"]}),
    "tables, DoRA": (llama, {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "biases of layers": (qwen, {"target_modules": ["q_proj", "k_proj", "v_proj"], "bias": "lora_only"}),
    "all biases": (qwen, {"target_modules": ["o_proj", "down_proj"], "bias": "all"}),
    "GPT-2": (gpt2, {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}),
    "GPT-2, DoRA": (gpt2, {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "GPT-2, biases": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
}


def made_by_peft(folder, make, settings):
    """A folder with an adapter that peft wrote, and the logits that it has there."""
    model = peft.get_peft_model(make(), peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings)).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        logits = model(TOKENS).logits
    model.save_pretrained(folder, save_embedding_layers=False)
    return logits


@torch.no_grad()
def logits_of(model):
    found = model(TOKENS)
    return found if isinstance(found, torch.Tensor) else found.logits


def equal_files(a, b):
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (a, b))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("ours", [False, True], ids=["transformers", "decoder"])
def test_adapters_of_peft_are_read_used_merged_and_written_back(tmp_path, case, ours):
    """Traps: the scale of rsLoRA, of a pattern or of a fused layer's part ignored; a tied head dropped at merge."""
    make, settings = case
    expected = made_by_peft(tmp_path / "theirs", make, settings)
    make().save_pretrained(tmp_path / "base")
    model = load_huggingface(tmp_path / "base").eval() if ours else make()
    load_adapter(model, tmp_path / "theirs")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-5)
    save_adapter(model, tmp_path / "ours")
    equal_files(tmp_path / "ours", tmp_path / "theirs")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = peft.PeftModel.from_pretrained(make(), tmp_path / "ours").eval()
    assert not [each for each in caught if "missing" in str(each.message) or "unexpected" in str(each.message).lower()]
    torch.testing.assert_close(logits_of(again), expected, rtol=0, atol=1e-5)
    merge_and_remove(model)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-5)
    if not ours:
        model.save_pretrained(tmp_path / "merged")
        again = type(model).from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(logits_of(again), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=("qkv", "gate_up"), rank=3),
        LoraConfig(target_modules=("q", "v", "gate"), dora=True, rank_pattern={"v": 2}),
        LoraConfig(init="pissa", rank=3),
        LoraConfig(init="pissa", rank=3, rank_stabilized=True, dora=True),
        LoraConfig(target_modules=("out",), modules_to_save=("head", "embedding", "norm")),
    ],
    ids=["fused", "parts", "PiSSA", "PiSSA, rsLoRA, DoRA", "in full"],
)
def test_adapters_of_the_decoder_have_the_logits_of_peft(tmp_path, config):
    llama().save_pretrained(tmp_path / "base")
    model = add_adapter(load_huggingface(tmp_path / "base").eval(), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = logits_of(model)
    save_adapter(model, tmp_path / "ours", base=str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "ours").eval()
    torch.testing.assert_close(logits_of(theirs), expected, rtol=0, atol=1e-5)
    again = load_adapter(load_huggingface(tmp_path / "base").eval(), tmp_path / "ours")
    torch.testing.assert_close(logits_of(again), expected, rtol=0, atol=1e-5)
    save_adapter(again, tmp_path / "again")
    equal_files(tmp_path / "again", tmp_path / "ours")


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_dropout_in_training_is_drawn_as_peft_draws_it(tmp_path, settings):
    """Trap: DoRA with dropout."""
    settings = {"target_modules": ["o_proj"], "lora_dropout": 0.3} | settings
    made_by_peft(tmp_path / "theirs", llama, settings)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "theirs", is_trainable=True).train()
    ours = load_adapter(llama(), tmp_path / "theirs", trainable=True).train()
    found = []
    for model in (theirs, ours):
        torch.manual_seed(3)
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        norms = sorted(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
        found.append((loss.item(), norms))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


def damaged(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("ours", [False, True], ids=["transformers", "decoder"])
def test_an_adapter_loaded_with_missing_or_left_over_keys_is_refused(tmp_path, ours):
    """Trap: layers of an adapter that stay at zero, and nobody told."""
    made_by_peft(tmp_path / "adapter", llama, {"target_modules": ["q_proj", "v_proj"]})
    llama().save_pretrained(tmp_path / "base")
    model = load_huggingface(tmp_path / "base").eval() if ours else llama()
    before, kinds = logits_of(model), [type(module) for module in model.modules()]
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    kept = load_file(tmp_path / "adapter" / "adapter_model.safetensors")[key]
    damaged(tmp_path / "adapter", lambda tensors: tensors.pop(key))
    with pytest.raises(ValueError, match=r"lacks tensors of the adapter: model\.layers\.1\.self_attn\.v_proj\.lora_B"):
        load_adapter(model, tmp_path / "adapter")
    damaged(
        tmp_path / "adapter",
        lambda tensors: tensors.update({key: kept, "base_model.model.x.lora_A.weight": kept.clone()}),
    )
    with pytest.raises(ValueError, match=r"has tensors without a place: x\.lora_A\.weight"):
        load_adapter(model, tmp_path / "adapter")
    damaged(
        tmp_path / "adapter",
        lambda tensors: (tensors.pop("base_model.model.x.lora_A.weight"), tensors.update({key: kept[:, :2].clone()})),
    )
    with pytest.raises(ValueError, match=r"has the shape \(32, 2\), but by adapter_config\.json it is \(32, 4\)"):
        load_adapter(model, tmp_path / "adapter")
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'; supported is LORA"),
        ({"init_lora_weights": "pissa"}, "which changes the weights of the base"),
        ({"lora_bias": True}, "lora_bias is True, which is not supported"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is .3., which is not supported"),
        ({"layers_to_transform": [0]}, "layers_to_transform is .0., which is not supported"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(tmp_path, setting, sentence):
    made_by_peft(tmp_path / "adapter", llama, {"target_modules": ["q_proj"]})
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(ValueError, match=sentence):
        load_adapter(llama(), tmp_path / "adapter")


def test_an_adapter_file_is_never_saved_empty(tmp_path):
    """Trap: a file without tensors, as of parameters that are elsewhere while they are divided."""
    model = add_adapter(llama(), LoraConfig(target_modules=("q_proj",)))
    update = model.model.layers[1].self_attn.q_proj.adapters["default"]["whole"]
    update.a = nn.Parameter(torch.empty(0))
    with pytest.raises(ValueError, match=r"has empty tensors: model\.layers\.1\.self_attn\.q_proj\.lora_A"):
        save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="LlamaForCausalLM has no adapters"):
        save_adapter(llama(), tmp_path / "adapter")
    model = add_adapter(llama(), LoraConfig(target_modules=("q_proj",)))
    merged = add_adapter(llama(), LoraConfig(target_modules=("q_proj",)))
    from llmfast.finetuning import merge_adapter

    merge_adapter(merged)
    with pytest.raises(ValueError, match="is merged into the weights"):
        save_adapter(merged, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="exists already"):
        save_adapter(model, tmp_path / "adapter")
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == 4


def test_a_decoder_that_no_family_describes_has_its_own_names(tmp_path):
    config = DecoderConfig(vocab_size=50, width=32, layers=1, heads=4, context=16, smear=True)
    make = lambda: Decoder(config, generator=torch.Generator().manual_seed(0)).eval()  # noqa: E731
    model = add_adapter(make(), LoraConfig(target_modules=("q", "down")))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    save_adapter(model, tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.blocks.0.attention.q.lora_A.weight" in names
    tokens = TOKENS % 50
    assert torch.equal(load_adapter(make(), tmp_path / "adapter")(tokens), model(tokens))
