"""A patched transformers model computes what it did, as exactly, and can be taken back."""

import copy
from functools import cache

import pytest
import torch
from kernel_testing import assert_as_exact_as
from roundings import rounding_error

import llmfast

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {
    "Llama": SIZES,
    "Mistral": SIZES | {"sliding_window": 7},
    "Qwen2": SIZES | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "Qwen3": SIZES | {"head_dim": 16},
    "Gemma": SIZES | {"head_dim": 8},
    "Gemma2": SIZES | {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8},
    "GPT2": {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


# Gemma 2 caps the scores of attention, which PyTorch's SDPA cannot.
PEER_ATTENTION = {name: "eager" if name == "Gemma2" else "sdpa" for name in MODELS}


def build(name: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    settings = MODELS[name] | (NO_DROPOUT if name == "GPT2" else {})
    config = getattr(transformers, f"{name}Config")(**settings, attn_implementation=PEER_ATTENTION[name])
    model = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.3 if parameter.ndim == 1 else 0.0, std=0.1)
    return model.to(dtype).train()


def batch(padding: slice = slice(3)) -> dict[str, torch.Tensor]:
    """Two rows, the second with padding, on the left as for generation."""
    tokens = torch.randint(120, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, padding] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def results(model) -> dict[str, torch.Tensor]:
    """Logits of the tokens that are no padding, loss, and gradients."""
    # transformers' eager attention, which Gemma 2 needs, gives NaN in float64 where a token sees nothing at all.
    inputs = batch(slice(-3, None) if model.config.model_type == "gemma2" else slice(3))
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    found = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[inputs["attention_mask"].bool()]
    model.train()
    return found | {"loss": loss.detach().to(model.dtype), "logits": logits}


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_as_exact_as_before(name, dtype):
    peer, wide = results(build(name, dtype)), build(name, dtype).double()
    exact = results(wide)
    ours = results(llmfast.patch(build(name, dtype)))
    allowed = cache(lambda: rounding_error(lambda: results(wide), exact, dtype))
    for part, value in ours.items():
        assert_as_exact_as(part, value, peer[part], exact[part], lambda part=part: allowed()[part])


@pytest.mark.parametrize("name", MODELS)
def test_unpatch_takes_all_of_it_back(name):
    model = build(name)
    before = results(model)
    forwards = {part: module.forward.__func__ for part, module in model.named_modules()}
    keys = list(model.state_dict())
    llmfast.patch(model)
    assert list(model.state_dict()) == keys
    assert model.config._attn_implementation == "llmfast"
    llmfast.unpatch(model)
    assert {part: module.forward.__func__ for part, module in model.named_modules()} == forwards
    assert model.config._attn_implementation == PEER_ATTENTION[name]
    for part, value in results(model).items():
        assert torch.equal(value, before[part]), part


@pytest.mark.parametrize("part", ["norms", "activations", "attention", "loss"])
def test_each_part_can_be_left_out(part):
    model = llmfast.patch(build("Qwen3"), **{part: False})
    layer = model.model.layers[0]
    swapped = {
        "norms": "forward" in layer.input_layernorm.__dict__,
        "activations": "forward" in layer.mlp.__dict__,
        "attention": "forward" in layer.self_attn.__dict__,
        "loss": "forward" in model.__dict__,
    }
    assert swapped == {name: name != part for name in swapped}
    assert results(model)["loss"].item() == pytest.approx(results(build("Qwen3"))["loss"].item(), rel=1e-5)


def test_another_model_of_the_same_class_and_configuration_stays_as_it_is():
    config = transformers.LlamaConfig(**SIZES)
    patched, other = (transformers.LlamaForCausalLM(config) for _ in range(2))
    llmfast.patch(patched)
    assert not any("forward" in module.__dict__ for module in other.modules())
    assert other.config._attn_implementation != "llmfast"
    assert type(patched).forward is type(other).forward


def test_logits_are_not_formed_in_training_and_are_there_in_evaluation():
    model = llmfast.patch(build("Llama"))
    assert model(**batch()).logits is None
    assert model(input_ids=batch()["input_ids"]).logits.shape == (2, 12, 120)
    assert model.eval()(**batch()).logits.shape == (2, 12, 120)


def test_the_loss_is_normalised_by_the_count_that_trainer_gives():
    """Dropped, the gradient of an accumulated batch is not that of the whole."""
    plain, patched = build("Llama"), llmfast.patch(build("Llama"))
    for items in (37, torch.tensor(37)):
        expected = plain(**batch(), num_items_in_batch=items).loss
        torch.testing.assert_close(patched(**batch(), num_items_in_batch=items).loss, expected)


@pytest.mark.parametrize("name", ["Qwen3", "GPT2"])
def test_generation_is_the_same(name):
    model = build(name).eval()
    prompt = {key: value for key, value in batch().items() if key != "labels"}
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**prompt, **options)
    assert torch.equal(llmfast.patch(model).generate(**prompt, **options), expected)


def test_a_copy_of_a_patched_model_stands_on_its_own():
    model = llmfast.patch(build("Llama"))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert copied(**batch()).loss.item() == pytest.approx(torch.tensor(120.0).log().item())
    llmfast.unpatch(copied)
    assert "forward" in model.model.norm.__dict__


def losses(model, folder) -> list[float]:
    tokens = torch.randint(10, (24, 16), generator=torch.Generator().manual_seed(2)).tolist()
    rows = [{"input_ids": row, "labels": row, "note": "a column that the model does not take"} for row in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=1e-2, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    import datasets

    trainer = transformers.Trainer(model, arguments, train_dataset=datasets.Dataset.from_list(rows))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_trainer_run_has_the_same_loss_curve(tmp_path):
    plain = losses(build("Qwen2"), tmp_path / "plain")
    patched = losses(llmfast.patch(build("Qwen2")), tmp_path / "patched")
    assert len(plain) == 6
    assert patched == pytest.approx(plain, rel=1e-4)
    assert plain[-1] < plain[0]


@pytest.mark.parametrize("name", ["Qwen3", "GPT2"])
def test_a_class_is_patched_if_asked_and_taken_back(name, tmp_path):
    """Traps: a framework that builds the model itself; a class that stays changed; other classes changed with it."""
    cls = type(build(name))
    before, plain = dict(vars(cls)), build(name)
    plain.save_pretrained(tmp_path)
    expected = results(plain)
    try:
        assert llmfast.patch(cls, activations=False) is cls
        with pytest.raises(ValueError, match=f"{cls.__name__} is patched already"):
            llmfast.patch(cls)
        built, loaded = build(name), cls.from_pretrained(tmp_path).train()
        assert "forward" not in build("Llama").__dict__
    finally:
        llmfast.unpatch(cls)
    assert dict(vars(cls)) == before
    assert "forward" not in build(name).__dict__
    assert "forward" not in plain.__dict__
    for model in (built, loaded):
        assert "forward" in model.__dict__
        assert model.config._attn_implementation == "llmfast"
        assert model(**batch()).logits is None  # the loss is ours
        for part, value in results(model).items():
            torch.testing.assert_close(value, expected[part], rtol=1e-4, atol=1e-5)
        llmfast.unpatch(model)
    with pytest.raises(ValueError, match=f"{cls.__name__} is not patched"):
        llmfast.unpatch(cls)
    with pytest.raises(ValueError, match="BertForMaskedLM holds nothing that llmfast can patch"):
        llmfast.patch(transformers.BertForMaskedLM)


def test_what_cannot_be_patched_is_refused():
    with pytest.raises(ValueError, match="Linear holds nothing that llmfast can patch; supported are GPT2, Llama"):
        llmfast.patch(torch.nn.Linear(2, 2))
    model = build("Llama")
    with pytest.raises(ValueError, match="this model is not patched"):
        llmfast.unpatch(model)
    llmfast.patch(model)
    with pytest.raises(ValueError, match="patched already"):
        llmfast.patch(model)
    relu = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, hidden_act="relu"))
    with pytest.raises(ValueError, match="no kernel for the activation ReLU"):
        llmfast.patch(relu)
    assert not any("forward" in module.__dict__ for module in relu.modules())
    llmfast.patch(relu, activations=False)
