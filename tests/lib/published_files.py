"""Files with the parts of published tokenizers, on small vocabularies that Hugging Face's library trains."""

from __future__ import annotations

import functools
import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from llmfast.tokenizer import patterns

TEXT = (
    "Don't DON'T  we'Ll stop!\n\n\n  END\t\t… naïve café 1234567 ½² 007\r\n\r\n  x = y*2 // z;/\n/\u00a0\u3000 "
    "日本語・カタカナ゛ 한국어 مرحبا 👩‍👩‍👧 e\u0301 \n \n\nend   after ſ'ſ \x85\u2028x\n  ﬁne ①Ⅷ ÅÇ ẞ İstanbul ΑΣ "
    "def main():\n    return [1, 22, 333] # the quick brown fox, isn't it? (yes!) \\frac{1}{2} ... --- === ?!\n"
)


def byte_level(prefix: bool = False, regex: bool = True, trim: bool = True) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False, kind: str = "Regex") -> dict[str, Any]:
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def cut(*steps: dict[str, Any]) -> dict[str, Any]:
    return sequence("pretokenizers", *steps)


def metaspace(prepend_scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": False}


def template(start: str) -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {start: {"id": start, "ids": [0], "tokens": [start]}},
    }


def digits(individual: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


END = [AddedToken("<|endoftext|>", special=True)]
SPACES = [AddedToken(" " * n, normalized=True, special=False) for n in range(2, 12)]
DEEPSEEK_AS_PUBLISHED = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    + "\r\n"
    + r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["""
    + "\r\n"
    + r"""]*|\s*["""
    + "\r\n"
    + r"""]+|\s+(?!\S)|\s+""",
)
PHI4 = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
COMMAND_A = cut(digits(True), byte_level())
NFC = {"type": "NFC"}

# Each with the parts that its published file has.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"pre_tokenizer": byte_level(), "post_processor": byte_level(trim=False), "added": END},
    "gpt_neox": {
        "pre_tokenizer": byte_level(),
        "normalizer": NFC,
        "post_processor": byte_level(trim=True),
        "added": [*END, AddedToken("<|padding|>", special=True), *SPACES],
    },
    "olmo": {
        "pre_tokenizer": byte_level(),
        "normalizer": NFC,
        "post_processor": template("<|endoftext|>"),
        "added": [
            *END,
            AddedToken("|||EMAIL_ADDRESS|||", special=False),
            AddedToken("|||PHONE|||", special=False),
            *SPACES,
        ],
    },
    "smollm": {
        "pre_tokenizer": cut(digits(True), byte_level()),
        "added": [*END, AddedToken("<|im_start|>", special=True)],
    },
    "starcoder2": {
        "pre_tokenizer": cut(digits(True), byte_level()),
        "post_processor": byte_level(),
        "added": [*END, AddedToken("<fim_prefix>", special=True)],
    },
    "falcon": {
        "pre_tokenizer": cut(
            {"type": "Punctuation", "behavior": "Contiguous"},
            byte_level(),
            digits(False),
            split("[0-9][0-9][0-9]"),
        ),
        "post_processor": sequence("processors", byte_level(trim=False)),
        "added": [*END, AddedToken(">>TITLE<<", special=True)],
    },
    "whisper": {
        "pre_tokenizer": byte_level(),
        "post_processor": template("<|endoftext|>"),
        "added": [*END, AddedToken("<|en|>", special=True), AddedToken("<|0.00|>", special=False)],
    },
    "roberta": {
        "pre_tokenizer": byte_level(),
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", 1],
            "cls": ["<s>", 0],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        "added": [
            AddedToken("<s>", special=True, normalized=True),
            AddedToken("</s>", special=True, normalized=True),
            AddedToken("<mask>", special=True, lstrip=True),
        ],
        "renumber": True,
    },
    "roberta_prefix": {
        "pre_tokenizer": byte_level(prefix=True),
        "post_processor": byte_level(prefix=True),
        "added": END,
    },
    "phi2": {
        "pre_tokenizer": byte_level(),
        "post_processor": byte_level(),
        "added": [*END, *SPACES, AddedToken("\t\t", special=False)],
    },
    "qwen2": {
        "pre_tokenizer": cut(split(patterns.QWEN2), byte_level(regex=False)),
        "normalizer": NFC,
        "post_processor": byte_level(trim=False, regex=False),
        "added": [
            *END,
            AddedToken("<|im_start|>", special=True),
            AddedToken("<think>", special=False),
            AddedToken("<tool_call>", special=False),
        ],
    },
    "llama3": {
        "pre_tokenizer": cut(split(patterns.LLAMA3), byte_level(regex=False)),
        "post_processor": sequence("processors", byte_level(trim=False), template("<|begin_of_text|>")),
        "added": [AddedToken("<|begin_of_text|>", special=True), AddedToken("<|end_of_text|>", special=True)],
        "model": {"ignore_merges": True},
    },
    "gpt_oss": {
        "pre_tokenizer": cut(split(PHI4, behavior="Removed", invert=True), byte_level(regex=False)),
        "added": [AddedToken("<|startoftext|>", special=True), *END, AddedToken("<|return|>", special=True)],
        "model": {"ignore_merges": True},
    },
    "deepseek_v3": {
        "pre_tokenizer": cut(*map(split, DEEPSEEK_AS_PUBLISHED), byte_level(regex=False)),
        "normalizer": sequence("normalizers"),
        "post_processor": byte_level(trim=False),
        "added": [
            AddedToken("<｜begin▁of▁sentence｜>", special=True),
            AddedToken("<｜User｜>", special=False),
            AddedToken("<think>", special=False, normalized=False),
        ],
    },
    "bloom": {
        "pre_tokenizer": cut(split(BLOOM), byte_level(regex=False)),
        "post_processor": byte_level(trim=False),
        "added": [AddedToken("<s>", special=True), AddedToken("</s>", special=True)],
    },
    "codegen": {
        "pre_tokenizer": byte_level(),
        "post_processor": byte_level(trim=False),
        "added": [*END, *SPACES],
    },
    "granite": {
        "pre_tokenizer": cut(digits(True), byte_level()),
        "post_processor": byte_level(),
        "added": END,
    },
    "command_r": {
        "pre_tokenizer": cut(digits(True), byte_level(trim=True)),
        "normalizer": NFC,
        "post_processor": template("<BOS_TOKEN>"),
        "added": [AddedToken("<BOS_TOKEN>", special=True)],
    },
    "nemotron": {
        "pre_tokenizer": cut(
            split(PHI4.replace(r"\p{N}{1,3}", r"\p{N}").replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "")),
            byte_level(regex=False),
        ),
        "added": [AddedToken("<unk>", special=True), AddedToken("[INST]", special=True)],
        "model": {"ignore_merges": True},
    },
    "modernbert": {
        "pre_tokenizer": byte_level(),
        "normalizer": NFC,
        "post_processor": template("[CLS]"),
        "added": [
            AddedToken("[CLS]", special=True),
            AddedToken("[MASK]", special=True, lstrip=True),
            AddedToken("|||IP_ADDRESS|||", special=False),
            *SPACES,
        ],
    },
    "clip": {
        "pre_tokenizer": cut(
            split(
                r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
                "Removed",
                True,
            ),
            byte_level(),
        ),
        "normalizer": sequence(
            "normalizers",
            NFC,
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ),
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["<|endoftext|>", 1],
            "cls": ["<|startoftext|>", 0],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "added": [AddedToken("<|startoftext|>", special=True), *END],
        "model": {"end_of_word_suffix": "</w>", "unk_token": "<|endoftext|>"},
    },
    "nfkc_lower": {
        "pre_tokenizer": byte_level(),
        "normalizer": sequence("normalizers", {"type": "NFKC"}, {"type": "Lowercase"}),
        "post_processor": byte_level(),
        "added": [*END, AddedToken("NAME", special=False, normalized=True)],
    },
    "stripped": {
        "pre_tokenizer": cut({"type": "WhitespaceSplit"}, byte_level(prefix=True)),
        "normalizer": sequence(
            "normalizers",
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Prepend", "prepend": "_"},
        ),
        "post_processor": byte_level(prefix=True),
        "added": [*END, AddedToken("MASK", special=True, rstrip=True, single_word=True)],
    },
    "lines": {
        "pre_tokenizer": cut(
            split("\n", "MergedWithPrevious", kind="String"),
            split(r"\d+$", "MergedWithNext"),
            byte_level(regex=False),
        ),
        "normalizer": {"type": "NFKD"},
        "added": END,
    },
    "metaspace_first": {  # which only the beginning of a text gets, and no stretch behind an added token
        "pre_tokenizer": cut(metaspace("first"), byte_level(regex=False)),
        "added": [*END, AddedToken("<b>", special=False)],
    },
    "metaspace_behind": {"pre_tokenizer": cut(byte_level(), metaspace("always")), "added": END},
    "bytes_first": {"pre_tokenizer": cut(byte_level(), digits(True)), "added": END},
    "normalized_to_bytes": {
        "pre_tokenizer": split("Ġ", "MergedWithNext", kind="String"),
        "normalizer": sequence("normalizers", NFC, {"type": "ByteLevel"}),
        "added": END,
    },
}


@functools.cache
def published_like(family: str) -> str:
    """A ``tokenizer.json`` with the parts of a family's."""
    parts = FAMILIES[family]
    options = parts.get("model", {})
    suffix = options.get("end_of_word_suffix")
    tokenizer = tokenizers.Tokenizer(models.BPE(**options))
    shell = json.loads(tokenizer.to_str())
    shell |= {name: parts.get(name) for name in ("normalizer", "pre_tokenizer")}
    shell["decoder"] = parts.get("decoder", byte_level())
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(shell))
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[options["unk_token"]] if "unk_token" in options else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **({"end_of_word_suffix": suffix} if suffix else {}),
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.add_special_tokens([token for token in parts["added"] if token.special])
    tokenizer.add_tokens([token for token in parts["added"] if not token.special])
    file = json.loads(tokenizer.to_str())
    file["post_processor"] = parts.get("post_processor")
    if parts.get("renumber"):
        renumber(file)
    return json.dumps(file, ensure_ascii=False)


def renumber(file: dict[str, Any]) -> None:
    """Gives tokens the ids that another order than that of the merges has, as where a list of words came first."""
    vocabulary = file["model"]["vocab"]
    added = [token["content"] for token in file["added_tokens"]]
    ordered = [*added, *sorted(vocabulary.keys() - set(added), key=lambda text: (len(text) % 3, text))]
    file["model"]["vocab"] = {text: number for number, text in enumerate(ordered)}
    for token in file["added_tokens"]:
        token["id"] = file["model"]["vocab"][token["content"]]
