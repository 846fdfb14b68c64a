"""Runs and data at addresses. fsspec's file system in memory stands for a bucket."""

import signal
import uuid

import fsspec
import pytest
import torch
from small_run import new_run, write_corpus

from llmfast import cli
from llmfast.commands.copy import copy
from llmfast.data.reading.corpus import Corpus
from llmfast.models.folder import checkpoints
from llmfast.models.tensors import trained_tensors
from llmfast.remote import download, local_files, upload
from llmfast.training.loop import fit, save
from llmfast.training.session import resumed_session


@pytest.fixture
def bucket():
    """An address at which nothing is yet."""
    address = f"memory://{uuid.uuid4().hex}"
    yield address
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_at(address):
    system, root = fsspec.core.url_to_fs(address)
    return {path[len(root) + 1 :] for path in system.find(root)}


def test_a_folder_comes_back_as_it_was(tmp_path, bucket):
    folder = write(tmp_path / "run", config="a", checkpoints__b="b", data__train__c="c")
    upload(folder, bucket + "/run/")
    download(bucket + "/run", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_what_is_being_written_is_not_copied(tmp_path, bucket):
    """Trap: a lock or half of a checkpoint that arrives elsewhere."""
    folder = write(tmp_path / "run", log="1")
    for name in (".lock", ".step-000002.1-ab.partial"):
        write(folder / "checkpoints" / name if "partial" in name else folder, **{name: "x"})
    upload(folder, bucket)
    assert names_at(bucket) == {"log"}


def test_the_copy_follows_the_folder(tmp_path, bucket):
    """What changes is sent again, what is final is not, and checkpoints that were dropped are removed."""
    folder = write(tmp_path / "run", log="1", **{"checkpoints__step-1__state": "old"})
    upload(folder, bucket)
    system, root = fsspec.core.url_to_fs(bucket)
    sent = system.info(f"{root}/checkpoints/step-1/state")["created"]
    write(folder, log="12", **{"checkpoints__step-2__state": "new"})
    upload(folder, bucket)
    assert system.info(f"{root}/checkpoints/step-1/state")["created"] == sent
    assert system.cat_file(f"{root}/log") == b"12"
    for path in (folder / "checkpoints" / "step-1").iterdir():
        path.unlink()
    upload(folder, bucket)
    assert names_at(bucket) == {"log", "checkpoints/step-2/state"}


def test_the_state_of_a_checkpoint_is_sent_last(tmp_path, bucket, monkeypatch):
    """Trap: a copy that was interrupted looks like a whole checkpoint."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    for name in ("state.json", "model.safetensors", "tokenizer.json"):
        (folder / "checkpoints" / "step-1" / name).write_text("x")
    system, _ = fsspec.core.url_to_fs(bucket)
    sent = []
    put = type(system).put_file
    monkeypatch.setattr(type(system), "put_file", lambda self, *a, **b: (sent.append(a[1]), put(self, *a, **b))[1])
    upload(folder, bucket)
    assert len(sent) == 3
    assert sent[-1].endswith("state.json")


def test_documents_come_from_an_address(tmp_path, bucket):
    corpus = write_corpus(tmp_path / "corpus", 5)
    upload(corpus, bucket + "/texts")
    here = [document.text for document in Corpus([str(corpus)])]
    assert [document.text for document in Corpus([bucket + "/texts"])] == here
    assert [document.text for document in Corpus([bucket + "/texts/*.txt"])] == here
    assert [document.text for document in Corpus([bucket + "/texts/001.txt"])] == [here[1]]


def test_a_file_is_copied_once_for_each_edition(tmp_path, bucket):
    """Trap: an edited file at the same address is read from the cache."""
    system, root = fsspec.core.url_to_fs(bucket + "/a.txt")
    system.pipe_file(root, b"first")
    (first,) = local_files(bucket + "/a.txt")
    assert local_files(bucket + "/a.txt") == [first]
    system.pipe_file(root, b"second")
    (second,) = local_files(bucket + "/a.txt")
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("memory://nowhere/at/all", "no such file or folder"),
        ("memory://nowhere/*.txt", "no such file or folder"),
        ("nonsense://bucket/a.txt", "Protocol not known"),
    ],
)
def test_sources_that_are_not_there_are_named(address, reason):
    with pytest.raises(ValueError, match=f"{address.replace('*', '.')}.*{reason}"):
        Corpus([address])


def test_a_run_is_copied_as_it_is_saved(tmp_path, bucket):
    session = new_run(tmp_path, steps=6, checkpoint_every=2, keep_last=1, keep_best=False, copy_to=bucket)
    fit(session)
    upload(session.run.folder, bucket)  # as the commands do at the end
    kept = {name.split("/")[1] for name in names_at(bucket) if name.startswith("checkpoints/")}
    assert kept == {"step-000006"}
    copy(bucket, str(tmp_path / "back"))
    there, here = contents(tmp_path / "back"), contents(session.run.folder)
    del here[".lock"]
    assert there == here


def test_a_run_is_resumed_from_its_copy(tmp_path, bucket):
    """The copy alone, on another machine, continues to the same bits."""
    first = new_run(tmp_path, steps=4)
    for _ in range(2):
        first.trainer.step()
    save(first)
    upload(first.run.folder, bucket)
    copy(bucket, str(tmp_path / "second"))
    second = resumed_session(tmp_path / "second")
    for session in (first, second):
        fit(session)
    for name, tensor in trained_tensors(first.trainer.model).items():
        assert torch.equal(trained_tensors(second.trainer.model)[name], tensor), name


@pytest.fixture
def storage_is_away(bucket, monkeypatch):
    """Writing to the bucket fails."""
    system, _ = fsspec.core.url_to_fs(bucket)

    def refuses(self, *arguments, **options):
        raise ConnectionError("the storage is away")

    monkeypatch.setattr(type(system), "put_file", refuses)


def copied_run(tmp_path, bucket):
    """The words of a run that is copied to a bucket."""
    corpus = write_corpus(tmp_path / "corpus")
    words = ["train", "--data.sources", str(corpus), "--data.vocab_size", "300", "--data.validation_fraction", "0.2"]
    words += ["--model.width", "16", "--model.layers", "1", "--model.heads", "2", "--model.context", "16"]
    words += ["--training.steps", "4", "--training.batch_size", "4", "--training.compile", "False"]
    words += ["--training.checkpoint_every", "2", "--training.sample_every", "0", "--training.copy_to", bucket]
    return [*words, "--out", str(tmp_path / "run")]


def test_a_copy_that_fails_does_not_end_the_run(tmp_path, bucket, storage_is_away, capsys):
    """Trap: storage that cannot be reached for a minute costs a run of days. At the end it is an error."""
    assert cli.main(copied_run(tmp_path, bucket)) == 2
    assert f"{bucket}: the storage is away" in capsys.readouterr().err
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-000002", "step-000004"]


def interrupt(model, tokenizer):
    signal.raise_signal(signal.SIGINT)
    return {}


def test_a_stopped_run_says_how_it_is_resumed_though_its_copy_fails(tmp_path, bucket, storage_is_away, capsys):
    """Trap: the error of the storage in place of the sentence that a person needs to continue."""
    watched = ["--training.evaluations", f"{__name__}:interrupt", "--training.evaluate_every", "2"]
    assert cli.main([*copied_run(tmp_path, bucket), *watched]) == 130
    printed = capsys.readouterr()
    assert printed.err == (
        f"llmfast: stopped at step 2 and saved; resume with: llmfast train --resume {tmp_path / 'run'}\n"
    )
    assert f"not copied  {bucket}: the storage is away" in printed.out


def test_copying_needs_an_address_and_a_folder(tmp_path, bucket, capsys):
    (tmp_path / "here").mkdir()
    for words, reason in [
        ([str(tmp_path), str(tmp_path / "b")], "one of"),
        ([bucket, bucket + "/b"], "one of"),
        ([bucket, str(tmp_path / "new")], "there is no folder with files"),
        ([bucket, str(tmp_path / "here")], "exists already"),
        ([str(tmp_path / "away"), bucket], "there is no folder"),
    ]:
        assert cli.main(["copy", *words]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_run_is_copied_to_an_address_only(tmp_path):
    with pytest.raises(ValueError, match="copy_to is an address"):
        new_run(tmp_path, copy_to="backup")
