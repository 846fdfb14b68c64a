"""Finetuned models of each kind, small enough to train in a second: in full, by LoRA, and by QLoRA."""

from pathlib import Path

from small_labels import new_labels_run
from small_sft import new_sft_run, write_model

from llmfast.training.loop import fit

ADAPTERS = {"full": "none", "lora": "lora", "qlora": "qlora"}


def write_finetuned(folder: Path) -> Path:
    """A model, and runs that start from it: sft-full/run, sft-lora/run, ..., labels-qlora/run; returns the folder."""
    start = write_model(folder / "start", context=256)
    for name, adapter in ADAPTERS.items():
        sft = folder / f"sft-{name}"
        sft.mkdir()
        (sft / "start").symlink_to(start)
        fit(new_sft_run(sft, adapter=adapter, steps=2, sample_every=0, evaluate_every=0))
        labels = folder / f"labels-{name}"
        fit(new_labels_run(labels, start=str(start), adapter=adapter, steps=2, sample_every=0, evaluate_every=0))
    return folder
