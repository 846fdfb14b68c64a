"""Every kind of source gives the same documents; damage and missing columns are named."""

import gzip
import json
import os

import pytest

from llmfast.data.reading import corpus as corpus_module
from llmfast.data.reading import datasets_hub
from llmfast.data.reading.corpus import Corpus
from llmfast.data.shards import Share

TEXTS = [f"Document {number}: naïve 雪 \N{GRINNING FACE}\nsecond line\r\nthird" for number in range(50)]


def compress(path, data):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        half = len(data) // 2  # two frames, as pzstd and `cat a.zst b.zst` make them
        frames = [zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:])]
        path.write_bytes(b"".join(frames))
    else:
        path.write_bytes(data)
    return str(path)


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(path, **columns):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    pq.write_table(pa.table(columns), path, row_group_size=7)
    return str(path)


def texts(*sources, **options):
    return [document.text for document in Corpus(sources, **options)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines(tmp_path, suffix):
    rows = [{"id": number, "url": "u", "text": text} for number, text in enumerate(TEXTS)]
    path = compress(tmp_path / f"a.jsonl{suffix}", json_lines(rows))
    assert texts(path) == TEXTS
    assert texts(path, column="url") == ["u"] * 50


@pytest.mark.parametrize("first", [None, "a text"])
@pytest.mark.parametrize("kind", ["jsonl", "dataset"])
def test_a_row_without_text_is_passed_over(tmp_path, kind, first):
    """Trap: where the text is null, another column is trained on in its place."""
    rows = [{"url": "u", "text": text} for text in (first, None, "another")]
    source = compress(tmp_path / "a.jsonl", json_lines(rows)) if kind == "jsonl" else rows
    assert texts(source) == [text for text in (first, "another") if text]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text(tmp_path, suffix):
    for number, text in enumerate(TEXTS):
        compress(tmp_path / f"{number:02d}.txt{suffix}", text.encode())
    assert texts(str(tmp_path)) == TEXTS


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_large_text_file_is_streamed_in_pieces_that_join_to_the_whole(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(corpus_module, "LARGE_BYTES", 20)
    monkeypatch.setattr(corpus_module, "PIECE_CHARACTERS", 100)
    text = "".join(f"line {number} naïve 雪\r\n" for number in range(200))
    pieces = texts(compress(tmp_path / f"book.txt{suffix}", text.encode()))
    assert "".join(pieces) == text
    assert len(pieces) > 20
    assert all(piece.endswith("\n") for piece in pieces)


def test_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", id=list(range(50)), text=TEXTS)
    assert texts(path) == TEXTS


def test_a_folder_may_hold_every_kind(tmp_path):
    compress(tmp_path / "a.txt", b"plain")
    compress(tmp_path / "b.jsonl.gz", json_lines([{"text": "from json"}, "a bare string"]))
    parquet(tmp_path / "c.parquet", body=["from parquet", None])
    assert texts(str(tmp_path)) == ["plain", "from json", "a bare string", "from parquet"]


def test_hugging_face_datasets_in_memory_streamed_and_by_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    in_memory = datasets.Dataset.from_dict({"id": list(range(50)), "text": TEXTS})
    assert texts(in_memory) == TEXTS
    assert texts(in_memory.to_iterable_dataset(num_shards=4)) == TEXTS
    (tmp_path / "mine").mkdir()
    in_memory.to_parquet(tmp_path / "mine" / "train.parquet")
    assert texts(f"hf:{tmp_path / 'mine'}") == TEXTS
    assert texts(f"hf:{tmp_path / 'mine'}:train:text") == TEXTS
    with pytest.raises(ValueError, match="no text column 'body'; its text columns are text"):
        texts(f"hf:{tmp_path / 'mine'}:train:body")


def test_short_names_name_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return [{"text": "a story"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in ("fineweb-edu", "fineweb", "tinystories", "openwebtext", "tinyshakespeare"):
        assert datasets_hub.is_dataset(name)
        assert texts(name) == ["a story"]
    assert asked[0] == (("HuggingFaceFW/fineweb-edu", "sample-10BT"), {"split": "train", "streaming": True})


def test_a_dataset_that_cannot_be_had_is_named():
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match="dataset hf:/nowhere/at/all cannot be loaded"):
        texts("hf:/nowhere/at/all")


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["texts", "few texts", "json", "parquet", "dataset", "stream", "mixed"])
def test_parts_share_out_every_document_once(tmp_path, kind, count):
    """Trap: text that two machines both encode, or none."""
    sources = [str(tmp_path)]
    if kind in ("texts", "mixed"):
        for number, text in enumerate(TEXTS):
            (tmp_path / f"{number:02d}.txt").write_bytes(text.encode())
    if kind == "few texts":
        (tmp_path / "book.txt").write_text("".join(f"{n} of a long line\n" for n in range(9000)))
    if kind in ("json", "mixed"):
        (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    if kind in ("parquet", "mixed"):
        parquet(tmp_path / "a.parquet", text=TEXTS)
    if kind in ("dataset", "stream"):
        datasets = pytest.importorskip("datasets")
        sources = [datasets.Dataset.from_dict({"text": TEXTS})]
    if kind == "stream":
        sources = [sources[0].to_iterable_dataset(num_shards=4)]
    parts = [texts(*sources, share=Share(index, count)) for index in range(count)]
    assert sorted(text for part in parts for text in part) == sorted(texts(*sources))
    assert count > 3 or all(parts)


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "good"}\n{"text": broken}\n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1 is neither an object nor a string"),
        ("a.jsonl", b'{"n": 1}\n', r"a\.jsonl:1 has no text column; its text columns are none"),
        ("a.parquet", b"PAR1 not really", r"a\.parquet is damaged"),
        ("a.txt.gz", b"not gzip at all", r"a\.txt\.gz is damaged"),
        ("a.jsonl.zst", b"not zstandard", r"a\.jsonl\.zst is damaged"),
    ],
)
def test_damage_is_named(tmp_path, name, content, message):
    pytest.importorskip("pyarrow")
    pytest.importorskip("zstandard")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts(str(tmp_path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_cut_off_is_not_taken_for_a_short_one(tmp_path, suffix):
    """Trap: a download that broke off reads as fewer documents, and nobody is told."""
    path = tmp_path / f"a.jsonl{suffix}"
    compress(path, json_lines([os.urandom(30).hex() for _ in range(2000)]))
    cut(path)
    with pytest.raises(ValueError, match="is damaged"):
        texts(str(path))
