"""An imported model computes what transformers does, or is refused, whatever its config.json and its files hold."""

import json
import pickle
import shutil

import pytest
import torch

from llmfast.commands.huggingface import export_model, import_model
from llmfast.integrations.huggingface import load_huggingface, save_huggingface
from llmfast.integrations.huggingface.defaults import DEFAULTS, HARMLESS
from llmfast.integrations.huggingface.families import DECODERS
from llmfast.integrations.huggingface.mxfp4 import dequantize_mxfp4
from llmfast.integrations.opening import open_start
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 40,
    "sliding_window": 5,
    "attention_chunk_size": 5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
# Layers that are not all alike, where the family has such.
LAYERS = {
    "gemma3_text": {"layer_types": TYPES},
    "olmo3": {"layer_types": TYPES},
    "cohere2": {"layer_types": TYPES},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "llama4_text": {"no_rope_layers": [1, 0, 1], "interleave_moe_layer_step": 2, "floor_scale": 6},
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
TOKENS = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(0))


def configuration(kind: str, **changes):
    cls = getattr(transformers, DECODERS[kind].architecture).config_class
    known = cls(pad_token_id=None).to_dict()
    sizes = GPT2 if kind == "gpt2" else {name: value for name, value in SIZES.items() if name in known}
    if "num_experts" in sizes:
        sizes.pop("num_local_experts", None)
    return cls(**sizes | LAYERS.get(kind, {}) | changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind: str, **changes):
        key = (kind, repr(changes))
        if key not in made:
            torch.manual_seed(0)
            model = getattr(transformers, DECODERS[kind].architecture)(configuration(kind, **changes)).eval()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
            made[key] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(made[key])
        return made[key]

    return folder


def rewritten(source, target, edit):
    shutil.copytree(source, target)
    file = json.loads((target / "config.json").read_text())
    edit(file)
    (target / "config.json").write_text(json.dumps(file))
    return target


@torch.no_grad()
def theirs(folder) -> torch.Tensor | None:
    """Their logits; None where transformers does not load the folder whole."""
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        if info["missing_keys"] or info["mismatched_keys"] or info["unexpected_keys"]:
            return None
        return model.eval()(TOKENS).logits.float()
    except Exception:
        return None


@torch.no_grad()
def ours(folder) -> torch.Tensor | str:
    """Our logits, or why there are none."""
    try:
        return load_huggingface(folder).eval()(TOKENS)
    except ValueError as error:
        return str(error)


def assert_equal_or_refused(folder, name: str) -> bool:
    """Whether the folder was loaded."""
    found = ours(folder)
    if isinstance(found, str):
        assert found
        assert "\n" not in found
        return False
    expected = theirs(folder)
    if expected is None:  # It minds values that change nothing, such as a token outside of the vocabulary.
        assert name.removeprefix("without ").partition("=")[0] in HARMLESS, f"{name}: transformers does not load this"
        return True
    torch.testing.assert_close(
        found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item(), msg=lambda text: f"{name}: {text}"
    )
    return True


def mutations(value):
    """Other values of a setting."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, max(value // 2, 1)]
    if isinstance(value, float):
        return [value * 2 + 0.1, 0.5]
    if isinstance(value, str):
        return ["gelu", "relu", "other"]
    if isinstance(value, list):
        return [value[::-1], value[:1] * len(value)]
    if value is None:
        return [1, True, "other"]
    return []


SAMPLE = ("gpt2", "mixtral", "granite")  # of what takes long; all with --every-family


def pytest_generate_tests(metafunc):
    if "tried" in metafunc.fixturenames:
        metafunc.parametrize("tried", DECODERS if metafunc.config.getoption("--every-family") else SAMPLE)


def test_every_key_is_used_or_harmless_or_named(tried, folders, tmp_path):
    """Trap: a setting that is dropped without a word."""
    source = folders(tried)
    keys = json.loads((source / "config.json").read_text()) | configuration(tried).to_dict()
    keys |= dict.fromkeys(("a_setting_of_tomorrow", "rope_scaling", "logits_scaling", "attn_logit_softcapping"))
    loaded = refused = 0
    for name, value in keys.items():
        if name in ("model_type", "architectures"):
            continue
        for number, other in enumerate(mutations(value)):
            folder = rewritten(source, tmp_path / f"{name}-{number}", lambda file, n=name, o=other: file.update({n: o}))
            if assert_equal_or_refused(folder, f"{name}={other!r}"):
                loaded += 1
            else:
                refused += 1
                if name.startswith("a_setting"):
                    assert name in ours(folder)
            shutil.rmtree(folder)
    assert loaded > 5
    assert refused > 5


def test_a_key_that_is_left_out_is_what_transformers_takes(tried, folders, tmp_path):
    """Traps: rope_theta of Mixtral, a million; the context of Llama; key/value heads of Mistral, eight."""
    source = folders(tried)
    loaded = 0
    for name in json.loads((source / "config.json").read_text()):
        if name not in ("model_type", "architectures"):
            folder = rewritten(source, tmp_path / name, lambda file, n=name: file.pop(n))
            loaded += assert_equal_or_refused(folder, f"without {name}")
            shutil.rmtree(folder)
    assert loaded > 8


@pytest.mark.parametrize("kind", DECODERS)
def test_the_table_of_defaults_is_that_of_transformers(kind):
    fields = getattr(transformers, DECODERS[kind].architecture).config_class.__dataclass_fields__
    for name, value in DEFAULTS[kind].items():
        if name != "head_dim" or "head_dim" in fields:
            if name not in fields:  # which its files do not have
                assert name in ("max_window_layers", "head_dim")
                continue
            assert fields[name].default == value, name


def test_published_weights_of_gpt_oss_are_decoded_as_transformers_does(folders, tmp_path):
    """Traps: the halves of a byte, the sign of zero, gate and up in turns, matrices (in, out)."""
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    source, generator = folders("gpt_oss", intermediate_size=32), torch.Generator().manual_seed(0)
    tensors = load_file(source / "model.safetensors")
    shutil.copytree(source, tmp_path / "plain")
    packed = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        count, width_in, width_out = packed.pop(name).shape
        shape = (count, width_out, width_in // 32)
        blocks = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 128, shape, dtype=torch.uint8, generator=generator)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        every = torch.arange(256, dtype=torch.uint8).expand(1, 3, 256).reshape(1, 3, 16, 16)
        of_every = torch.randint(1, 250, (1, 3, 16), dtype=torch.uint8, generator=generator)
        found, expected = dequantize_mxfp4(every, of_every), convert_moe_packed_tensors(every, of_every)
        assert torch.equal(found.bfloat16().view(torch.int16), expected.view(torch.int16))
    save_file(tensors, tmp_path / "plain" / "model.safetensors")
    quantized = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    rewritten(source, tmp_path / "packed", lambda file: file.update(quantized))
    save_file(packed, tmp_path / "packed" / "model.safetensors")
    models = [load_huggingface(tmp_path / each).state_dict() for each in ("plain", "packed")]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())
    assert_equal_or_refused(tmp_path / "plain", "")
    with pytest.raises(ValueError, match=r"blocks and scales of MXFP4 are uint8, .*; got \(1, 3, 256\) torch.uint8"):
        dequantize_mxfp4(every.flatten(2), of_every)
    rewritten(folders("llama"), tmp_path / "llama", lambda file: file.update(quantized))
    with pytest.raises(ValueError, match=r"its weights are quantized \(mxfp4\); supported are the 4 bits"):
        load_huggingface(tmp_path / "llama")


ROPE = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16},
}
MORE = [
    {},
    {"mscale": 1.3},
    {"mscale": 1.3, "mscale_all_dim": 0.6},
    {"attention_factor": 1.4},
    {"beta_fast": 16.0, "beta_slow": 2.0},
    {"truncate": False},
    {"partial_rotary_factor": 0.5},
    {"partial_rotary_factor": 1.0},
    {"rope_theta": 500.0},
    {"original_max_position_embeddings": 8},
    {"something": 2},
    {"factor": None},
    {"low_freq_factor": None},
    {"type": "linear"},
]


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("rope", ROPE)
def test_every_setting_of_the_rotary_embedding(rope, key, folders, tmp_path):
    """Trap: mscale of YaRN, which the loader drops."""
    source, loaded = folders("llama"), 0
    for number, more in enumerate(MORE):

        def edit(file, more=more):
            file.pop("rope_parameters")
            file[key] = {"rope_type": rope, "rope_theta": 300.0} | ROPE[rope] | more

        folder = rewritten(source, tmp_path / str(number), edit)
        loaded += assert_equal_or_refused(folder, f"{rope} {more}")
    assert loaded > 2 or rope == "longrope"


def test_a_stored_head_beside_a_tied_config_counts(folders, tmp_path):
    """transformers takes it, and so does the import; a run that starts from the folder does not tie it again."""
    source = folders("llama", tie_word_embeddings=False)
    folder = rewritten(source, tmp_path / "tied", lambda file: file.update(tie_word_embeddings=True))
    assert assert_equal_or_refused(folder, "a head of its own")
    start = open_start(folder)
    model = start.decoder(DecoderConfig(dropout=0.1)).eval()
    torch.testing.assert_close(model(TOKENS), theirs(folder), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "awq"},
    ],
)
def test_weights_in_a_form_that_cannot_be_decoded_are_refused(config, folders, tmp_path):
    edit = {"quantization_config": config}
    folder = rewritten(folders("llama"), tmp_path / "quantized", lambda file: file.update(edit))
    assert "its weights are quantized" in ours(folder)


def as_bin(folder, shards: int = 1) -> None:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    homes = {name: f"pytorch_model-{i % shards}.bin" for i, name in enumerate(tensors)}
    for home in set(homes.values()):
        torch.save({name: tensor for name, tensor in tensors.items() if homes[name] == home}, folder / home)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": homes}))


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_of_torch_save_are_read(shards, folders, tmp_path):
    folder = rewritten(folders("qwen2"), tmp_path / "bin", lambda file: None)
    expected = ours(folder)
    as_bin(folder, shards)
    assert torch.equal(ours(folder), expected)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


BROKEN = {
    "config.json is no JSON": lambda f: (f / "config.json").write_text("{"),
    "config.json is a list": lambda f: (f / "config.json").write_text("[]"),
    "config.json is no text": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
    "config.json is a folder": lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
    "a size is a list": lambda f: rewrite(f, hidden_size=[32]),
    "a size is negative": lambda f: rewrite(f, num_hidden_layers=-1),
    "a size is a fraction": lambda f: rewrite(f, hidden_size=32.5),
    "rotary settings are a number": lambda f: rewrite(f, rope_parameters=3),
    "weights are cut": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:900]),
    "weights are empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "weights are missing": lambda f: (f / "model.safetensors").unlink(),
    "the index is no JSON": lambda f: (f / "model.safetensors.index.json").write_text("{"),
    "the index is a list": lambda f: (f / "model.safetensors.index.json").write_text("[]"),
    "the index has no map": lambda f: (f / "model.safetensors.index.json").write_text("{}"),
    "the index names a file elsewhere": lambda f: (f / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../../etc/passwd"}}'
    ),
    "the index names a missing file": lambda f: (f / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-2.safetensors"}}'
    ),
    "a pickle runs code": lambda f: (as_bin(f), (f / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))),
    "a pickle is cut": lambda f: (as_bin(f), (f / "pytorch_model.bin").write_bytes(b"\x80\x02")),
    "a pickle holds no tensors": lambda f: (as_bin(f), torch.save([1, 2], f / "pytorch_model.bin")),
}


def rewrite(folder, **changes):
    file = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(file | changes))


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_ends_in_one_sentence(fault, folders, tmp_path):
    folder = rewritten(folders("llama"), tmp_path / "broken", lambda file: None)
    BROKEN[fault](folder)
    said = ours(folder)
    assert isinstance(said, str)
    assert str(folder) in said
    assert "\n" not in said


@pytest.mark.parametrize("kind", [*DECODERS, "granite without factors"])
def test_a_model_is_exported_as_the_family_that_it_was_imported_from(kind, folders, tmp_path, capsys):
    """Trap: the first family that fits, where several do: the logits are equal, and the name is another one."""
    kind, *without = kind.split(" without ")
    factors = ("embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier")
    plain = dict.fromkeys(factors, 1.0) | {"attention_multiplier": 8**-0.5}
    import_model(folders(kind, **(plain if without else {})), tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == kind


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_export_has_the_dtype_that_the_model_had(kind, dtype, folders, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders(kind), dtype=dtype)
    model.save_pretrained(tmp_path / "stored")
    decoder = load_huggingface(tmp_path / "stored")
    save_huggingface(decoder, tmp_path / "again", family=kind)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            again.state_dict()[name], value, rtol=0, atol=2**-23 if dtype == torch.float32 else 0
        )
    save_huggingface(decoder, tmp_path / "wide", family=kind, dtype=torch.float32)
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"


def test_export_names_the_tokens_that_begin_and_end_a_text(tmp_path):
    """Traps: the family's first model's, and none."""
    from llmfast.tokenizer import Tokenizer

    model = Decoder(DecoderConfig(vocab_size=300, width=32, layers=1))
    tokenizer = Tokenizer.train(["ab ab abc"] * 5, 260)
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "generation_config.json").write_text('{"eos_token_id": [7, 9], "bos_token_id": 3}')

    def exported(name, source):
        save_huggingface(model, tmp_path / name, tokenizer_from=source)
        config = transformers.AutoConfig.from_pretrained(tmp_path / name)
        said = transformers.GenerationConfig.from_pretrained(tmp_path / name) if source else config
        return (config.bos_token_id, config.eos_token_id, said.bos_token_id, said.eos_token_id)

    assert exported("given", tmp_path / "tokenizer") == (3, [7, 9], 3, [7, 9])
    (tmp_path / "tokenizer" / "generation_config.json").unlink()
    end = tokenizer.eot_token
    assert exported("of the tokenizer", tmp_path / "tokenizer") == (end, end, end, end)
    assert exported("unknown", None) == (None, None, None, None)
