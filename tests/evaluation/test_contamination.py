"""Overlap of evaluation texts with a training corpus: every common n-gram is found, and no other."""

import json

import numpy as np
import pytest
from small_sft import WORDS, small_tokenizer, write_model

from llmfast.commands.evaluate import evaluate
from llmfast.data.shards import ShardWriter, TokenShards
from llmfast.evaluation import contamination as module
from llmfast.evaluation.contamination import contamination


def write_shards(folder, documents, vocab_size=330, eot=0, fingerprint="f"):
    folder.mkdir()
    writer = ShardWriter(folder, vocab_size=vocab_size, eot_token=eot, fingerprint=fingerprint)
    for tokens in documents:
        writer.add(np.array([*tokens, eot]), 1, len(tokens))
    writer.finish()
    return folder


def definition(text, corpus, n):
    runs = {tuple(corpus[at : at + n]) for at in range(len(corpus) - n + 1)}
    covered = set()
    for at in range(len(text) - n + 1):
        if tuple(text[at : at + n]) in runs:
            covered |= set(range(at, at + n))
    return len(covered) / len(text) if text else 0.0


@pytest.mark.parametrize("n", [1, 3, 7])
def test_overlaps_are_the_definition(tmp_path, monkeypatch, n):
    """Trap: an n-gram across the border of two pieces of the corpus, and equal hashes of different n-grams."""
    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(module, "_FACTOR", np.uint64(2))  # many hashes are equal
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 6, 40).tolist() for _ in range(3)]
    shards = TokenShards(write_shards(tmp_path / "shards", documents))
    corpus = shards.read(0, len(shards)).tolist()
    texts = [draw.integers(1, 6, size).tolist() for size in (0, 2, 12, 30)] + [documents[1][5:20]]
    found = contamination(texts, shards, ngram=n)
    assert found.covered == pytest.approx([definition(text, corpus, n) for text in texts])
    assert found.covered[-1] == 1.0
    assert found.too_short == [len(text) < n for text in texts]
    with pytest.raises(ValueError, match="ngram must be at least 1"):
        contamination(texts, shards, ngram=0)


def test_the_command_shows_the_figures_without_what_overlaps(tmp_path):
    run, tokenizer = write_model(tmp_path / "run", context=256), small_tokenizer()
    goals = [" ".join([word] * 12) for word in WORDS[:6]]
    rows = [{"goal": goal, "sol1": "red fox", "sol2": "blue lamp", "label": 0} for goal in goals]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    leaked = f"and then: Question: {goals[4]}\nAnswer: red fox, it said"
    documents = [tokenizer.encode(leaked), tokenizer.encode("the river is green and the stone is red " * 3)]
    made = {"vocab_size": tokenizer.n_vocab, "eot": tokenizer.eot_token, "fingerprint": tokenizer.fingerprint}
    shards = write_shards(tmp_path / "shards", documents, **made)
    options = {"tasks": ("piqa",), "data": (file,), "device": "cpu", "contamination": shards, "ngram": 18}
    overlap = evaluate(run, **options)["results"]["piqa"]["contamination"]
    assert [share > 0.5 for share in overlap["covered"]] == [n == 4 for n in range(6)]
    assert overlap["overlapping"] == 1
    others = tmp_path / "others.jsonl"
    others.write_text("".join(json.dumps(row) + "\n" for n, row in enumerate(rows) if n != 4))
    alone = evaluate(run, tasks=("piqa",), data=(others,), device="cpu")["results"]["piqa"]
    assert overlap["figures_without"] == alone["figures"]
    with pytest.raises(ValueError, match=r"contamination: the shards in .* are of another tokenizer"):
        evaluate(run, **options | {"contamination": write_shards(tmp_path / "other", documents)})
