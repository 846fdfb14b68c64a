"""Preparation by Ray Data: the same documents on the same sides as without it."""

import pytest
from small_run import write_corpus

from llmfast.data.config import DataConfig
from llmfast.data.prepare import open_prepared, prepare
from llmfast.data.reading.ray_data import EncodeBatch, prepare_on_ray
from llmfast.tokenizer import Tokenizer


@pytest.fixture
def plain(tmp_path):
    """The corpus prepared without Ray, and its texts."""
    corpus = write_corpus(tmp_path / "corpus")
    config = DataConfig(sources=(str(corpus),), vocab_size=300, validation_fraction=0.2)
    prepare(config, tmp_path / "plain")
    return tmp_path / "plain", [path.read_text(encoding="utf-8") for path in sorted(corpus.iterdir())]


def documents(folder):
    prepared = open_prepared(folder)
    return [
        sorted(
            prepared.tokenizer.decode(shards.read(start, length - 1).tolist())
            for start, length in zip(*(each.tolist() for each in shards.document_spans), strict=True)
        )
        for shards in (prepared.train, prepared.validation)
    ]


class ManyBatches:
    """As much of a Ray dataset as preparation uses: batches in any order, one of them twice, as after a lost node."""

    def __init__(self, texts):
        self.texts = texts

    def map_batches(self, function, *, batch_size, batch_format):
        assert batch_format == "numpy"
        batches = [self.texts[start : start + batch_size] for start in range(0, len(self.texts), batch_size)]
        function({"text": batches[0]})
        self.records = [function({"text": batch}) for batch in reversed(batches)]
        return self

    def take_all(self):
        rows = []
        for columns in self.records:
            rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return rows


def test_any_order_and_repeated_tasks_give_the_same_shards(plain, tmp_path):
    folder, texts = plain
    tokenizer = Tokenizer.load(folder)
    options = {"validation_fraction": 0.2, "batch_size": 17}
    found = prepare_on_ray(ManyBatches(texts), tokenizer, tmp_path / "ray", **options)
    assert documents(tmp_path / "ray") == documents(folder)
    again = prepare_on_ray(ManyBatches(texts), tokenizer, tmp_path / "again", **options)
    assert again.train.checksum == found.train.checksum


def test_texts_that_are_none_or_blank_are_left_out(plain, tmp_path):
    folder, texts = plain
    encode = EncodeBatch(Tokenizer.load(folder), tmp_path / "ray", "text", 0.2)
    rows = encode({"text": [None, "", " \n", *texts]})
    assert sum(rows["documents"]) == len(texts)


def test_on_a_local_cluster(plain, tmp_path):
    ray = pytest.importorskip("ray")
    folder, texts = plain
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        dataset = ray.data.from_items([{"text": text} for text in texts]).repartition(4)
        prepare_on_ray(dataset, Tokenizer.load(folder), tmp_path / "ray", validation_fraction=0.2)
    finally:
        ray.shutdown()
    assert documents(tmp_path / "ray") == documents(folder)
