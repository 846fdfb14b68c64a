"""A patched transformers model computes what it did, as exactly, and can be taken back."""

import copy
from functools import cache

import pytest
import torch
from kernel_testing import assert_as_exact_as
from roundings import rounding_error

import llmfast
from llmfast.integrations import replacements

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
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MODELS = {
    "Llama": SIZES,
    "Mistral": SIZES | {"sliding_window": 7},
    "Qwen2": SIZES | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "Qwen3": SIZES | {"head_dim": 16},
    "Gemma": SIZES | {"head_dim": 8},
    "Gemma2": SIZES | {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8},
    "Gemma3Text": SIZES | {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "GPT2": {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "Phi3": SIZES | {"pad_token_id": 0, "sliding_window": 7},
    "SmolLM3": SIZES | {"pad_token_id": 0, "no_rope_layers": [1, 0]},
    "Olmo2": SIZES,
    "Olmo3": SIZES | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    "Granite": SIZES
    | {
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 3.0,
    },
    "GptOss": SIZES
    | {"head_dim": 8, "sliding_window": 7, "num_local_experts": 4, "num_experts_per_tok": 2}
    | {"layer_types": ["sliding_attention", "full_attention"]},
    "Llama4Text": SIZES
    | {"head_dim": 8, "attention_chunk_size": 5, "intermediate_size_mlp": 48, "num_local_experts": 4}
    | {"moe_layers": [1], "no_rope_layers": [1, 0]},
    "Cohere": SIZES | {"logit_scale": 0.25, "use_qk_norm": True},
    "Mixtral": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
    "Qwen2Moe": SIZES | MOE | {"shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    "Qwen3Moe": SIZES | MOE | {"mlp_only_layers": [0]},
}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


# Of these, attention has caps or sinks, which PyTorch's SDPA has not.
EAGER = ("Gemma2", "GptOss")
PEER_ATTENTION = {name: "eager" if name in EAGER else "sdpa" for name in MODELS}


CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM", "Llama4Text": "Llama4ForCausalLM"}


def build(name: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    settings = MODELS[name] | (NO_DROPOUT if name == "GPT2" else {})
    config = getattr(transformers, f"{name}Config")(
        **settings, attn_implementation=PEER_ATTENTION[name], experts_implementation="eager"
    )
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config)
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
    inputs = batch(slice(-3, None) if model.config.model_type in ("gemma2", "gpt_oss") else slice(3))
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


def own_attributes(cls) -> dict:
    """Those of a class, without what transformers remembers of it."""
    return {name: value for name, value in vars(cls).items() if not name.endswith("_cached_value")}


@pytest.mark.parametrize("name", ["Qwen3", "GPT2"])
def test_a_class_is_patched_if_asked_and_taken_back(name, tmp_path):
    """Traps: a framework that builds the model itself; a class that stays changed; other classes changed with it."""
    cls = type(build(name))
    before, plain = own_attributes(cls), build(name)
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
    assert own_attributes(cls) == before
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


@pytest.mark.parametrize("name", MODELS)
def test_verification_passes_in_every_family(name):
    """Runs of the probe change neither modes nor numbers."""
    model = build(name)
    model.model.eval() if hasattr(model, "model") else model.transformer.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    llmfast.patch(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


def test_a_model_that_computes_something_else_when_patched_is_refused_and_left_as_it_was():
    """A class with an attention of its own under a known name, which lost its causal mask."""

    class Odd(transformers.models.llama.modeling_llama.LlamaForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, **kwargs):
            if self.config._attn_implementation == "llmfast":  # sees the last token everywhere
                shift = 0.05 * self.model.embed_tokens(input_ids[:, -1:])
                kwargs |= {"inputs_embeds": self.model.embed_tokens(input_ids) + shift}
                input_ids = None
            return super().forward(input_ids, attention_mask, **kwargs)

    plain = build("Llama")
    model = Odd(plain.config)
    model.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="Odd computes something else after it was patched: the outputs for a batch"):
        llmfast.patch(model)
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in module.__dict__ for module in model.modules())
    llmfast.patch(model, verify=False)


@pytest.mark.parametrize("name", ["Falcon", "Bloom", "GPTNeoX", "Phi", "Bert", "StableLm"])
def test_families_that_are_not_listed_are_refused(name):
    """Trap: their LayerNorm alone makes them look like a model that can be patched, and their attention, chosen when
    they are built, loses its causal mask (Falcon)."""
    sizes = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    kind = getattr(transformers, "BertLMHeadModel" if name == "Bert" else f"{name}ForCausalLM")
    config = kind.config_class(**sizes)
    model = kind(config)
    implementation = model.config._attn_implementation
    with pytest.raises(
        ValueError, match=f"{kind.__name__} holds nothing that llmfast can patch; supported are gpt2, ll"
    ):
        llmfast.patch(model)
    assert model.config._attn_implementation == implementation
    assert not any("forward" in module.__dict__ for module in model.modules())
    with pytest.raises(ValueError, match="holds nothing that llmfast can patch"):
        llmfast.patch(kind)


def losses_and_gradients(model, **options) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(**batch(), **options).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_loss(patched, plain, **options) -> None:
    expected, found = losses_and_gradients(plain, **options), losses_and_gradients(patched, **options)
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        torch.testing.assert_close(
            found[part], value, rtol=1e-4, atol=1e-5, msg=lambda text, part=part: f"{part}: {text}"
        )


def test_an_adapter_on_the_head_counts_in_the_loss():
    """Trap: the loss takes the weight of the layer below the adapter, and the adapter learns nothing."""
    peft = pytest.importorskip("peft")

    def tuned(model):
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=["lm_head", "q_proj"], init_lora_weights=False, lora_dropout=0.0)
        return peft.get_peft_model(model, config).train()

    replacements._said.clear()
    with pytest.warns(UserWarning, match="leaves the loss to the model: the head is more than a linear layer"):
        assert_same_loss(llmfast.patch(tuned(build("Llama"))), tuned(build("Llama")))


def set_bias(model):
    head = torch.nn.Linear(32, 120)
    torch.nn.init.constant_(head.bias, 0.5)
    head.weight = model.lm_head.weight
    model.lm_head = head


def set_hook(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)


def set_parametrization(model):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(model.lm_head, "weight", Doubled())


def set_norm(model):
    model.lm_head = torch.nn.Sequential(torch.nn.LayerNorm(32), model.lm_head)


def set_loss(model):
    def loss(logits, labels, vocab_size, **kwargs):
        return logits.square().mean()

    model.loss_function = loss


@pytest.mark.parametrize("change", [set_bias, set_hook, set_parametrization, set_norm, set_loss])
def test_a_head_or_a_loss_of_another_kind_is_left_to_the_model(change):
    plain, patched = build("Llama"), build("Llama")
    for model in (plain, patched):
        torch.manual_seed(3)
        change(model)
    llmfast.patch(patched)
    assert_same_loss(patched, plain)


def test_the_loss_of_the_router_is_not_dropped():
    plain, patched = build("Qwen3Moe"), llmfast.patch(build("Qwen3Moe"))
    assert_same_loss(patched, plain, output_router_logits=True)
    assert patched(**batch(), output_router_logits=True).aux_loss is not None
    for model in (plain, patched):
        model.config.output_router_logits = True
    assert_same_loss(patched, plain)


def test_attention_is_set_by_the_switch_of_transformers_and_can_be_set_back():
    model = llmfast.patch(build("Llama"))
    expected = results(build("Llama"))
    for name in ("sdpa", "llmfast"):
        model.set_attn_implementation(name)
        for part, value in results(model).items():
            torch.testing.assert_close(value, expected[part], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_patched_is_refused():
    with pytest.raises(ValueError, match="Linear holds nothing that llmfast can patch; supported are gpt2, llama"):
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
