"""Imported models write what transformers writes: prompts begin and replies end by the model's own files."""

import json

import pytest
import torch

from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.prompts import beginning, begins_documents_with_end_of_text, end_tokens
from llmfast.tokenizer import Tokenizer

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
TYPES = ["sliding_attention", "full_attention"]
WINDOWED = {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "sliding_window": 7,
    "layer_types": TYPES,
}
GEMMA = WINDOWED | {"query_pre_attn_scalar": 20}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "rope_theta": 150_000.0,
    "original_max_position_embeddings": 24,
    "truncate": False,
}
GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 7.0}
FAMILIES = {
    "gpt2": ("GPT2", {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}),
    "llama": ("Llama", SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 96}),
    "mistral": ("Mistral", SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 96, "sliding_window": 7}),
    "qwen3": ("Qwen3", SIZES | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 96}),
    "mixtral": ("Mixtral", SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 96, "num_local_experts": 3}),
    "smollm3": (
        "SmolLM3",
        SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 96, "no_rope_layers": [1, 0]},
    ),
    "olmo3": ("Olmo3", SIZES | {"max_position_embeddings": 96, "sliding_window": 7, "layer_types": TYPES}),
    "gemma2": ("Gemma2", SIZES | GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", SIZES | GEMMA),
    "cohere": ("Cohere", SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 96}),
    "granite": ("Granite", SIZES | GRANITE | {"num_key_value_heads": 2, "max_position_embeddings": 96}),
    "gpt_oss": (
        "GptOss",
        SIZES | WINDOWED | {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": YARN},
    ),
    "llama4": (
        "Llama4Text",
        SIZES | {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 96,
            "intermediate_size_mlp": 40,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 0],
            "attention_chunk_size": 7,
            "floor_scale": 5,
            "attn_scale": 0.5,
        },
    ),
    "dynamic": (
        "Llama",
        SIZES | {
            "max_position_embeddings": 24,
            "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
        },
    ),
}  # fmt: skip
SEEDS = {"gpt_oss": 1}  # whose text has no end token within 40
BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
TEXT = "the red fox, the red dog"


def tokenizer_of(folder, begins):
    """A tokenizer in transformers' files; with ``begins`` it puts a token before each text, as Llama 3's does."""
    from tokenizers import processors

    tokenizer = Tokenizer.train([TEXT * 2], 270, allow_smaller=True, special_tokens=[BEGIN, END, TURN])
    theirs = tokenizer.to_transformers(bos_token=BEGIN, eos_token=END)
    number = theirs.convert_tokens_to_ids(BEGIN)
    byte_level = processors.ByteLevel(trim_offsets=False)
    template = processors.TemplateProcessing(f"{BEGIN} $A", f"{BEGIN} $A {BEGIN} $B", [(BEGIN, number)])
    theirs.backend_tokenizer.post_processor = processors.Sequence([byte_level, template]) if begins else byte_level
    theirs.save_pretrained(folder)


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    import transformers

    name, settings = FAMILIES[request.param]
    config = getattr(transformers, f"{name}Config")(**settings, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    config.tie_word_embeddings = request.param in ("gpt2", "qwen3")
    torch.manual_seed(SEEDS.get(request.param, 0))
    kind = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name.removesuffix('Text')}ForCausalLM")
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # far from flat: rounding must not decide
    model.save_pretrained(tmp_path)
    tokenizer_of(tmp_path, begins=request.param not in ("gpt2", "qwen3"))
    return tmp_path


def theirs_of(folder, **options):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(TEXT, return_tensors="pt")
    ids = inputs["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
    return ids[0].tolist(), out[0, ids.shape[1] :].tolist()


def ours_of(folder, count, config=None):
    engine = Engine.open(folder, config=config, device="cpu")
    ((reply,),) = engine.generate([TEXT], Sampling(temperature=0, max_tokens=count))
    return reply


def test_greedy_text_is_that_of_transformers(folder):
    (folder / "generation_config.json").unlink(missing_ok=True)
    prompt, tokens = theirs_of(folder, max_new_tokens=40)
    reply = ours_of(folder, 40, EngineConfig(block_size=4, prefill_chunk=5))
    assert reply.prompt_tokens == prompt
    assert reply.tokens == tokens


def test_all_end_tokens_of_the_files_end_a_reply(folder):
    _, tokens = theirs_of(folder, max_new_tokens=40)
    ends = [299, tokens[5]]
    (folder / "generation_config.json").unlink(missing_ok=True)
    for name in ("config.json", "generation_config.json"):  # the second rules where both are there
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(content | {"eos_token_id": ends}))
        _, until = theirs_of(folder, max_new_tokens=40)
        reply = ours_of(folder, 40)
        assert reply.tokens == until == tokens[: tokens.index(ends[1]) + 1]
        assert (reply.finish_reason, reply.stop_reason) == ("stop", ends[1])
        ends = [299, tokens[1]]


def test_a_model_of_our_own_begins_documents_after_the_end_of_text():
    tokenizer = Tokenizer.train([TEXT], 256 + 1, allow_smaller=True)
    assert beginning(tokenizer) == [tokenizer.eot_token]
    assert end_tokens(tokenizer) == {tokenizer.eot_token}
    assert begins_documents_with_end_of_text(tokenizer) is tokenizer


def test_pretraining_with_an_imported_tokenizer_says_how_documents_begin(tmp_path):
    """Trap: the tokenizer's rule is that of the model it came with, and not of the one that is trained."""
    for name, begins in (("with", True), ("without", False)):
        tokenizer_of(tmp_path / name, begins)
        tokenizer = Tokenizer.load(tmp_path / name)
        assert beginning(tokenizer) == ([tokenizer.encode_single_token(BEGIN)] if begins else [])
        begins_documents_with_end_of_text(tokenizer).save(tmp_path / "saved")
        saved = Tokenizer.load(tmp_path / "saved")
        assert beginning(saved) == [tokenizer.eot_token]
        assert saved.fingerprint == tokenizer.fingerprint


def test_devices_and_dtypes_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int7'"):
        Engine.open(tmp_path, device="cpu", dtype="int7")
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'nonsense'"):
        Engine.open(tmp_path, device="nonsense")
    with pytest.raises(ValueError, match="weights must be one of float32, bfloat16, int8, int4, nf4, got 'int3'"):
        Engine.open(tmp_path, weights="int3")
    with pytest.raises(
        ValueError, match="weights int8 is for the decoder on a CPU, which does not go with dtype float16"
    ):
        Engine.open(tmp_path, weights="int8", dtype="float16")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch finds no GPU here: choose cpu"):
            Engine.open(tmp_path, device="cuda")
