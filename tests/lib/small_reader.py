"""A small model that has read a book for a moment, and instructions for another: what real preferences start from."""

import functools
import tempfile
from pathlib import Path

from shared_data import shared_data

from llmfast.config import from_dict
from llmfast.finetuning.config import SupervisedConfig
from llmfast.finetuning.supervised import SupervisedFinetuning
from llmfast.training.config import RunConfig
from llmfast.training.loop import fit
from llmfast.training.session import new_session

BOOK_CHARACTERS = 500_000
QUIET = {"compile": False, "precision": "float32", "evaluate_every": 0, "sample_every": 0, "optimizer": "muon"}
SHAPE = {"width": 96, "layers": 2, "heads": 4, "context": 160, "scale_embedding": True, "smear": True}


@functools.cache
def reader() -> Path:
    """The folder of a run that was pretrained on a book and finetuned on instructions, half a minute together."""
    book, instructions = shared_data("text/dickens.txt"), shared_data("instruct/instruction_1100.json")
    folder = Path(tempfile.mkdtemp(prefix="reader-"))
    (folder / "book.txt").write_text(book.read_text(encoding="utf-8")[:BOOK_CHARACTERS], encoding="utf-8")
    pretraining = {
        "data": {"sources": [str(folder / "book.txt")], "vocab_size": 768},
        "model": SHAPE,
        "training": {"steps": 40, "batch_size": 6, "learning_rate": 1e-2} | QUIET,
    }
    fit(new_session(folder / "pretrained", from_dict(RunConfig, pretraining), report=lambda line: None))
    finetuning = {
        "start": str(folder / "pretrained"),
        "data": {"sources": [str(instructions)], "validation_fraction": 0.1},
        "training": {"steps": 100, "batch_size": 6, "learning_rate": 1.5e-2, "matrix_learning_rate": 0.03} | QUIET,
    }
    config, task = from_dict(SupervisedConfig, finetuning), SupervisedFinetuning
    fit(new_session(folder / "finetuned", config, task=task, report=lambda line: None))
    return folder / "finetuned"
