"""Token shards: what is written is read, and damage is named."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmfast.data import shards as shards_module
from llmfast.data.shards import ShardWriter, Share, TokenShards, write_index

EOT = 0


def write(folder, documents, *, vocab_size=1000):
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder, vocab_size=vocab_size, eot_token=EOT, fingerprint="abc")
    for document in documents:
        writer.add(np.array([*document, EOT]), 1, len(document))
    writer.finish()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1000, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_round_trip(tmp_path, vocab_size, dtype):
    write(tmp_path / "s", [[1, 2], [3], [vocab_size - 1]], vocab_size=vocab_size)
    shards = TokenShards(tmp_path / "s")
    assert shards.read(0, len(shards)).tolist() == [EOT, 1, 2, EOT, 3, EOT, vocab_size - 1, EOT]
    assert shards.dtype == dtype
    assert (shards.documents, shards.text_bytes) == (3, 4)


def test_reads_cross_shard_borders(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 8)
    write(tmp_path / "s", [[n, n, n] for n in range(1, 12)])
    shards = TokenShards(tmp_path / "s")
    assert len(shards.shards) > 2
    whole = shards.read(0, len(shards)).tolist()
    for start in range(len(whole)):
        for count in (1, 5, 20):
            assert shards.read(start, min(count, len(whole) - start)).tolist() == whole[start : start + count]


def truncate(folder):
    path = folder / "00000.bin"
    path.write_bytes(path.read_bytes()[:-2])


def alter(folder):
    path = folder / "00000.bin"
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)


def remove(folder):
    (folder / "00000.bin").unlink()


def damage_index(folder):
    (folder / "index.json").write_text("{")


def alter_index(folder):
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["text_bytes"] += 1
    (folder / "index.json").write_text(json.dumps(index))


def point_outside(folder):
    """A well-formed index, its checksum included, of a file that is none of the folder's."""
    writer = ShardWriter(folder, vocab_size=99, eot_token=EOT, fingerprint="abc")
    writer.finish()
    shards = [replace(writer.shards[0], file="../s/00000.bin")]
    write_index(folder, shards, vocab_size=99, eot_token=EOT, fingerprint="abc")


def old_format(folder):
    (folder / "index.json").write_text(json.dumps({"format": 1, "shards": []}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"00000.bin is truncated or altered: 6 bytes, expected 8"),
        (alter, r"00000.bin is altered"),
        (remove, r"00000.bin is missing"),
        (damage_index, r"index.json is damaged"),
        (alter_index, r"index.json is damaged: its SHA-256"),
        (point_outside, r"index.json is damaged: its shard '../s/00000.bin' is not in its folder"),
        (old_format, r"index.json is damaged: its format is 1; this version reads 2"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    write(tmp_path / "s", [[1, 2]])
    damage(tmp_path / "s")
    with pytest.raises(ValueError, match=message):
        TokenShards(tmp_path / "s")


def test_boundaries_are_kept_and_checked(tmp_path):
    write(tmp_path / "s", [[1, 2], [3], [4, 5, 6]])
    starts, lengths = TokenShards(tmp_path / "s").document_spans
    assert (starts.tolist(), lengths.tolist()) == ([1, 4, 6], [3, 2, 4])
    ends = tmp_path / "s" / "00000.ends"
    ends.write_bytes(ends.read_bytes()[::-1])
    with pytest.raises(ValueError, match=r"00000.ends are altered"):
        _ = TokenShards(tmp_path / "s").document_spans


def test_checksums_may_be_left_to_another_process(tmp_path):
    write(tmp_path / "s", [[1, 2]])
    alter(tmp_path / "s")
    assert len(TokenShards(tmp_path / "s", verify=False)) == 4
    truncate(tmp_path / "s")
    with pytest.raises(ValueError, match="truncated"):
        TokenShards(tmp_path / "s", verify=False)


def test_parts_are_read_as_one_when_all_are_there(tmp_path):
    for part in range(3):
        writer = ShardWriter(tmp_path, vocab_size=99, eot_token=EOT, fingerprint="abc", share=Share(part, 3))
        writer.add(np.array([part + 1, EOT]), 1, 1)
        writer.finish()
        if part < 2:
            with pytest.raises(ValueError, match=r"not complete: .*index-00002-of-00003.json not there yet"):
                TokenShards(tmp_path)
    shards = TokenShards(tmp_path)
    assert shards.read(0, len(shards)).tolist() == [0, 1, 0, 0, 2, 0, 0, 3, 0]


@pytest.mark.parametrize("text", ["3/3", "1", "-1/2", "1/0", "a/b"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="part"):
        Share.parse(text)


def test_a_folder_without_shards_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds no token shards"):
        TokenShards(tmp_path)
