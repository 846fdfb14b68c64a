"""A folder with something for every page of the dashboard, made by the commands that make it."""

from pathlib import Path

from small_labels import new_labels_run
from small_run import new_run
from small_server import write_chat_model

from llmfast.cli import main
from llmfast.training.loop import fit

ROOT = Path(__file__).resolve().parents[2]


def write_full_folder(folder: Path) -> Path:
    """Runs of a language model and of a classifier, a model that chats, an evaluation, data, a result; returns it."""
    fit(new_run(folder / "tiny", steps=6, sample_every=0))
    fit(new_labels_run(folder / "labels", sample_every=0))
    # Large enough that one sees it write, step by step.
    write_chat_model(folder / "models" / "chat", width=320, layers=10, heads=4)
    text = folder / "tiny" / "corpus" / "000.txt"
    assert main(["eval", str(folder / "tiny" / "run"), "--tasks", "text", "--data", str(text)]) == 0
    result = ROOT / "benchmarks" / "results" / "cpu-intel-xeon-optimizer.json"
    (folder / "results").mkdir()
    (folder / "results" / result.name).write_bytes(result.read_bytes())
    return folder


def damage_run(folder: Path) -> None:
    """Cut off the weights of a run, and write half of a summary."""
    for weights in folder.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "summary.json").write_text('{"command": "tr')
