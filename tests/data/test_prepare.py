"""Preparation: train and validation disjoint by document, all text kept, nothing half-written."""

import gzip

import pytest
from small_run import write_corpus

from llmfast.data.config import DataConfig
from llmfast.data.corpus import Corpus
from llmfast.data.prepare import compression_baselines, open_prepared, prepare


def documents_of(shards, tokenizer):
    text = tokenizer.decode(shards.read(0, len(shards)).tolist())
    return text.split("<|endoftext|>")[1:-1]


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def config(corpus, **changes):
    return DataConfig(
        **({"sources": (str(corpus),), "vocab_size": 300, "validation_fraction": 0.2} | changes)
    )


def test_every_document_is_on_exactly_one_side(corpus, tmp_path):
    """Trap: validation text that was trained on makes every later number a lie."""
    prepared = prepare(config(corpus), tmp_path / "data")
    train, validation = (documents_of(s, prepared.tokenizer) for s in (prepared.train, prepared.validation))
    everything = [document.text for document in Corpus([str(corpus)])]
    assert train
    assert validation
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(everything)
    assert prepared.train.text_bytes == sum(len(text.encode()) for text in train)


def test_a_text_that_occurs_twice_stays_on_one_side(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    for path in sorted(folder.iterdir()):
        (folder / f"copy-{path.name}").write_bytes(path.read_bytes())
    prepared = prepare(config(folder), tmp_path / "data")
    train, validation = (documents_of(s, prepared.tokenizer) for s in (prepared.train, prepared.validation))
    assert not set(train) & set(validation)


def test_one_small_corpus_still_has_both_sides(tmp_path):
    folder = write_corpus(tmp_path / "corpus", documents=2)
    prepared = prepare(config(folder, vocab_size=270, validation_fraction=0.001), tmp_path / "data")
    assert prepared.train.documents == prepared.validation.documents == 1


def test_nothing_to_hold_out_is_refused(tmp_path):
    folder = write_corpus(tmp_path / "corpus", documents=1)
    with pytest.raises(ValueError, match="nothing can be held out"):
        prepare(config(folder), tmp_path / "data")


def test_a_failure_leaves_nothing_behind(corpus, tmp_path):
    with pytest.raises(ValueError, match="100"):
        prepare(config(corpus, vocab_size=100), tmp_path / "out" / "data")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_given_tokenizer_is_used(corpus, tmp_path):
    first = prepare(config(corpus), tmp_path / "one")
    second = prepare(config(corpus, tokenizer=str(tmp_path / "one")), tmp_path / "two")
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert (second.train.read(0, 50) == first.train.read(0, 50)).all()


def test_shards_of_another_tokenizer_are_refused(corpus, tmp_path):
    """Trap: token shards read with the wrong vocabulary train happily on noise."""
    prepare(config(corpus), tmp_path / "one")
    prepare(config(corpus, vocab_size=290), tmp_path / "two")
    (tmp_path / "one" / "tokenizer.json").write_bytes((tmp_path / "two" / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="another tokenizer"):
        open_prepared(tmp_path / "one")


def test_baselines_are_those_of_the_held_out_text(corpus, tmp_path):
    prepared = prepare(config(corpus), tmp_path / "data")
    text = "".join(documents_of(prepared.validation, prepared.tokenizer)).encode()
    baselines = compression_baselines(prepared.validation, prepared.tokenizer)
    assert baselines["gzip"] == 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)
    assert 0 < baselines["xz"] < 8


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_validation_share_that_leaves_a_side_empty_is_refused(fraction):
    with pytest.raises(ValueError, match="validation_fraction"):
        DataConfig(validation_fraction=fraction)
