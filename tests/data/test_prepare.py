"""Preparation: train and validation disjoint by document, all text kept, nothing half-written."""

import dataclasses
import gzip
import itertools
import json
import os

import pytest
from small_run import write_corpus

from llmfast.cli import main
from llmfast.data import prepare as prepare_module
from llmfast.data import shards as shards_module
from llmfast.data.config import DataConfig
from llmfast.data.prepare import compression_baselines, open_prepared, prepare, prepare_resumably
from llmfast.data.reading import corpus as corpus_module
from llmfast.data.reading.corpus import Corpus, Document
from llmfast.data.report import report_on
from llmfast.data.shards import Share


def documents_of(shards, tokenizer):
    spans = zip(*(each.tolist() for each in shards.document_spans), strict=True)
    return [tokenizer.decode(shards.read(start, length - 1).tolist()) for start, length in spans]


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def config(corpus, **changes):
    return DataConfig(**({"sources": (str(corpus),), "vocab_size": 300, "validation_fraction": 0.2} | changes))


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


def test_a_number_of_processes_that_cannot_be_is_named_before_anything_is_made(corpus, tmp_path, capsys):
    words = ["data", "prepare", str(tmp_path / "data"), "--sources", str(corpus), "--processes"]
    for count in ("0", "-1"):
        assert main([*words, count]) == 2
        assert f"processes must be at least 1, got {count}" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_given_tokenizer_is_used(corpus, tmp_path):
    first = prepare(config(corpus), tmp_path / "one")
    second = prepare(config(corpus, tokenizer=str(tmp_path / "one")), tmp_path / "two")
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert (second.train.read(0, 50) == first.train.read(0, 50)).all()


def test_characters_can_be_the_tokens(corpus, tmp_path, capsys):
    """From the text to a sample, through the commands. Trap: an unseen character of a prompt has no token."""
    data, run = tmp_path / "data", tmp_path / "run"
    make = ["data", "prepare", str(data), "--sources", str(corpus), "--tokenizer", "characters"]
    assert main(make) == 0
    prepared = open_prepared(data)
    assert len(prepared.tokenizer.encode("naïve 雪")) == len("naïve 雪")
    lengths = [len(document.text) for document in Corpus([str(corpus)])]
    tokens = len(prepared.train) + len(prepared.validation)
    assert tokens == sum(lengths) + len(lengths) + 2  # a token after each document and before each split
    assert main(make) == 0  # made again: nothing to do
    sizes = "--model.width 16 --model.layers 1 --model.heads 2 --model.context 16 --training.compile False"
    assert (
        main(["train", "--data.prepared", str(data), "--training.steps", "2", *sizes.split(), "--out", str(run)]) == 0
    )
    capsys.readouterr()
    assert main(["generate", str(run), "--prompt", "naïf ☃", "--tokens", "5"]) == 0
    assert capsys.readouterr().out


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


# --- in place: resumable, in parts, in parallel --------------------------------------------------------------


def prepared_from(folder):
    prepared = open_prepared(folder)
    return [documents_of(shards, prepared.tokenizer) for shards in (prepared.train, prepared.validation)]


def small_groups(monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 4000)
    monkeypatch.setattr(prepare_module, "ENCODE_CHARACTERS", 3000)


def files(folder, pattern="*"):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob(pattern) if p.is_file()}


class Killed(BaseException):
    """Stands for a SIGKILL: nothing that runs afterwards may matter."""


@pytest.mark.parametrize("moment", [0, 1, 7, 20])
def test_a_killed_preparation_goes_on_and_ends_the_same(corpus, tmp_path, monkeypatch, moment):
    small_groups(monkeypatch)
    settings = config(corpus)
    prepare_resumably(settings, tmp_path / "whole")

    add, calls = shards_module.ShardWriter.add, itertools.count()

    def killed(*arguments):
        if next(calls) == moment:
            raise Killed
        add(*arguments)

    monkeypatch.setattr(shards_module.ShardWriter, "add", killed)
    with pytest.raises(Killed):
        prepare_resumably(settings, tmp_path / "killed")
    with pytest.raises(ValueError, match="no token shards"):
        open_prepared(tmp_path / "killed")
    monkeypatch.setattr(shards_module.ShardWriter, "add", add)
    prepare_resumably(settings, tmp_path / "killed")

    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert len(list((tmp_path / "whole" / "train").glob("*.bin"))) > 2


@pytest.mark.parametrize("share", [None, Share(1, 2), Share(1, 5)], ids=["all", "of files", "of rows"])
@pytest.mark.parametrize("moment", [0.5, 0.9])
def test_a_streamed_dataset_goes_on_where_it_was(tmp_path, monkeypatch, moment, share):
    """Traps: all rows before are fetched again; a row that was cut in pieces is read half, or twice."""
    datasets = pytest.importorskip("datasets")
    small_groups(monkeypatch)
    monkeypatch.setattr(corpus_module, "LARGE_ROW", 520)
    monkeypatch.setattr(corpus_module, "PIECE_CHARACTERS", 90)
    (tmp_path / "mine").mkdir()
    for number in range(3):
        rows = [f"row {number}-{row}\n" * (2 + row % 60) for row in range(200)]
        datasets.Dataset.from_dict({"text": rows}).to_parquet(
            tmp_path / "mine" / f"train-{number}.parquet", batch_size=30
        )
    settings = DataConfig(sources=(f"hf:{tmp_path / 'mine'}",), vocab_size=300, validation_fraction=0.2)
    prepare_resumably(settings, tmp_path / "tokenizer")
    settings = dataclasses.replace(settings, tokenizer=str(tmp_path / "tokenizer"))
    parts = {} if share is None else {"share": share}
    made, added, add = [], [], shards_module.ShardWriter.add
    monkeypatch.setattr(corpus_module, "Document", lambda *fields: made.append(Document(*fields)) or made[-1])
    monkeypatch.setattr(shards_module.ShardWriter, "add", lambda *these: added.append(1) or add(*these))
    prepare_resumably(settings, tmp_path / "whole", **parts)
    total, calls = len(made), itertools.count()

    def killed(*arguments):
        if next(calls) == int(moment * len(added)):
            raise Killed
        add(*arguments)

    monkeypatch.setattr(shards_module.ShardWriter, "add", killed)
    with pytest.raises(Killed):
        prepare_resumably(settings, tmp_path / "killed", **parts)
    monkeypatch.setattr(shards_module.ShardWriter, "add", add)
    (journal,) = (tmp_path / "killed").glob("journal*.json")
    done = json.loads(journal.read_text())["documents"]
    made.clear()
    prepare_resumably(settings, tmp_path / "killed", **parts)
    assert done > total / 10
    # The rule of the split looks at the first documents; a row in pieces is cut again from its beginning.
    assert len(made) < total - done + 60
    assert files(tmp_path / "killed", "*.bin") == files(tmp_path / "whole", "*.bin")


def test_work_done_is_not_done_again(corpus, tmp_path, monkeypatch):
    small_groups(monkeypatch)
    prepare_resumably(config(corpus), tmp_path / "data")
    monkeypatch.setattr(shards_module.ShardWriter, "add", None)
    prepare_resumably(config(corpus), tmp_path / "data")


def test_a_folder_of_other_settings_is_left_alone(corpus, tmp_path):
    prepare_resumably(config(corpus), tmp_path / "data")
    with pytest.raises(ValueError, match="prepared with another validation_fraction"):
        prepare_resumably(config(corpus, validation_fraction=0.4), tmp_path / "data")
    prepare_resumably(config(corpus, vocab_size=270), tmp_path / "other")
    with pytest.raises(ValueError, match="another tokenizer"):
        prepare_resumably(config(corpus, tokenizer=str(tmp_path / "other")), tmp_path / "data")


def test_parts_made_apart_are_the_whole(corpus, tmp_path):
    prepare_resumably(config(corpus), tmp_path / "whole")
    given = config(corpus, tokenizer=str(tmp_path / "whole"))
    for index in (2, 0, 1):
        prepare_resumably(given, tmp_path / "parts", share=Share(index, 3))
    whole, parts = prepared_from(tmp_path / "whole"), prepared_from(tmp_path / "parts")
    assert [sorted(documents) for documents in parts] == [sorted(documents) for documents in whole]


@pytest.mark.parametrize("changed", [{"validation_fraction": 0.5}, {"invalid_utf8": "replace"}, {"sources": ()}])
def test_parts_made_with_other_settings_are_refused(corpus, tmp_path, changed):
    """Trap: parts that overlap, or leave documents out, look like a whole."""
    prepare_resumably(config(corpus), tmp_path / "whole")
    if "sources" in changed:
        changed = {"sources": tuple(map(str, sorted(corpus.iterdir())[1:]))}
    given = config(corpus, tokenizer=str(tmp_path / "whole"))
    prepare_resumably(given, tmp_path / "parts", share=Share(0, 2))
    prepare_resumably(dataclasses.replace(given, **changed), tmp_path / "parts", share=Share(1, 2))
    with pytest.raises(ValueError, match="differ in their"):
        open_prepared(tmp_path / "parts")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda settings, corpus: {"vocab_size": 290}, "vocab_size"),
        (lambda settings, corpus: {"tokenizer_characters": 1000}, "tokenizer_characters"),
        (lambda settings, corpus: {"tokenizer": "characters"}, "kind of tokenizer"),
        (lambda settings, corpus: {"split": "tail"}, "split"),
        (lambda settings, corpus: sorted(corpus.iterdir())[0].write_text("another text") and {}, "list of files"),
        (lambda settings, corpus: os.utime(sorted(corpus.iterdir())[0], (1, 1)) or {}, "edition of the files"),
        (lambda settings, corpus: (corpus / "new.txt").write_text("new") and {}, "list of files"),
    ],
)
def test_what_is_there_is_not_taken_for_other_settings_or_an_edited_source(corpus, tmp_path, change, message):
    """Trap: a preparation finds its folder filled, reports what is there, and the change is never trained on."""
    settings = config(corpus)
    prepare_resumably(settings, tmp_path / "data")
    prepare_resumably(settings, tmp_path / "data")
    changed = dataclasses.replace(settings, **change(settings, corpus))
    with pytest.raises(ValueError, match=f"was prepared with another {message}"):
        prepare_resumably(changed, tmp_path / "data")


def test_what_was_passed_over_is_reported(corpus, tmp_path, capsys):
    (corpus / "binary.dat").write_bytes(b"\xff\xfe\x00")
    arguments = ["data", "prepare", str(tmp_path / "data"), "--sources", str(corpus), "--vocab_size", "300"]
    assert main(arguments) == 0
    assert "1 documents that are not UTF-8 text were skipped, the first is" in capsys.readouterr().out


def test_the_tail_of_a_text_can_be_held_out(tmp_path):
    """nanoGPT trains on the first nine tenths of TinyShakespeare: losses compare on the same text only."""
    text = "".join(f"line {number}, which is in its place\n" for number in range(20_000))
    (tmp_path / "play.txt").write_text(text)
    settings = config(tmp_path / "play.txt", split="tail", validation_fraction=0.1)
    prepared = prepare(settings, tmp_path / "data")
    train, validation = (documents_of(s, prepared.tokenizer) for s in (prepared.train, prepared.validation))
    assert "".join(train) + "".join(validation) == text
    assert abs(len("".join(validation)) / len(text) - 0.1) < corpus_module.PIECE_CHARACTERS / len(text)
    with pytest.raises(ValueError, match="tail needs one process"):
        prepare_resumably(settings, tmp_path / "parts", processes=2)


def test_processes_share_the_work(corpus, tmp_path):
    prepare_resumably(config(corpus), tmp_path / "one")
    prepare_resumably(config(corpus), tmp_path / "two", processes=2)
    one, two = prepared_from(tmp_path / "one"), prepared_from(tmp_path / "two")
    assert [sorted(documents) for documents in two] == [sorted(documents) for documents in one]


@pytest.mark.parametrize("tokenizer", [None, "characters"])
def test_a_part_without_a_tokenizer_is_refused(corpus, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"give data\.tokenizer"):
        prepare_resumably(config(corpus, tokenizer=tokenizer), tmp_path / "data", share=Share(0, 2))


# --- report --------------------------------------------------------------------------------------------------


def test_the_report_counts_what_is_there(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    for path in sorted(folder.iterdir())[:7]:
        (folder / f"copy-{path.name}").write_bytes(path.read_bytes())
    prepared = prepare(config(folder), tmp_path / "data")
    report = report_on(prepared)
    train, validation = report.splits["train"], report.splits["validation"]
    assert train.documents + validation.documents == 67
    assert train.duplicate_documents + validation.duplicate_documents == 7
    assert report.in_both == 0
    tokens = prepared.train.read(0, len(prepared.train)).tolist()
    assert train.vocabulary_coverage == len(set(tokens)) / prepared.tokenizer.n_vocab
    (text, share), *_ = train.common_tokens
    assert share == max(map(tokens.count, set(tokens))) / len(tokens)
    assert tokens.count(prepared.tokenizer.encode(text)[0]) == pytest.approx(share * len(tokens))
    seen, target = report.samples[0]
    assert documents_of(prepared.train, prepared.tokenizer)[0].startswith(seen + target)


def test_the_commands_prepare_and_report(corpus, tmp_path, capsys):
    data = str(tmp_path / "data")
    arguments = ["--sources", str(corpus), "--vocab_size", "300", "--validation_fraction", "0.2"]
    assert main(["data", "prepare", data, *arguments]) == 0
    assert "train " in capsys.readouterr().out
    assert main(["data", "report", data]) == 0
    assert "of 300 tokens used" in capsys.readouterr().out
    assert main(["data", "report", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocab_size"] == 300
    assert main(["data", "prepare", data, *arguments, "--shard", "3/2", "--tokenizer", data]) == 2
    assert "part 3 of 2 does not exist" in capsys.readouterr().err
