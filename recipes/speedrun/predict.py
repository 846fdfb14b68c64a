"""Predicts the time of the speed run on a node of H100s, part by part, and writes FOLDER/predicted.json:

    python predict.py pipeline.yaml FOLDER "RESULTS/*.json"

The work of each part is counted from the configuration. Its rate is that of the newest of the given result files that
measured it on this GPU (python -m benchmarks), else a share of the datasheet's rate that is assumed, and said to be.
"""

import glob
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfast.cli import parse
from llmfast.models.config import DecoderConfig
from llmfast.models.size import flops_by_part, parameters_by_part
from llmfast.pipeline.recipe import make_plan, read_recipe
from llmfast.training.sweep import with_settings

GPU = "H100"
FLOPS, BANDWIDTH, LINK = 989e12, 3.35e12, 450e9  # dense bfloat16, memory, NVLink in one direction; by its datasheet
BOTH = "forward+backward"
DOLLARS = 2.5  # for an hour of one GPU, assumed


@dataclass(frozen=True)
class Part:
    """A part of a training step on one GPU.

    Attributes:
        name: What is computed.
        formula: How its work is counted, in words and letters of CONTRIBUTING.md.
        work: In one step, in ``unit``.
        unit: FLOP or bytes.
        assumed: The share of the datasheet's rate where nothing is measured.
        measured: The operation of a result file whose rate it has; or ``ceiling``, the matrix product's.
    """

    name: str
    formula: str
    work: float
    unit: str
    assumed: float
    measured: str | None = None

    @property
    def peak(self) -> float:
        return {"FLOP": FLOPS, "bytes": BANDWIDTH, "bytes sent": LINK}[self.unit]


def parts(model: DecoderConfig, tokens: int, gpus: int) -> list[Part]:
    """The parts of one step.

    Args:
        model: its configuration.
        tokens: of one step on one GPU.
        gpus: that average their gradients.
    """
    flops, size = flops_by_part(model), parameters_by_part(model)
    E, F, layers = model.width, model.ff_width, model.layers
    matrices = size["attention"] + size["feed-forward"]
    heads = (model.heads + model.kv_heads) * model.head_width
    streamed = layers * 2 * (2 * 9 * E + 8 * F + 4 * heads)
    square = sum(5 * 2 * (2 * E * E * n + E**3) for n in (E, E, E, E, F, F, F)) * layers
    return [
        Part("matrix products of the blocks", "6 FLOP per weight and token",
             tokens * (flops["attention products"] + flops["feed-forward"]), "FLOP", 0.7, "ceiling"),
        Part("attention", "3.5 times the forward pass's 4·H·D FLOP per visible key: scores are computed twice",
             tokens * flops["attention scores"] / 3 * 3.5, "FLOP", 0.5, "attention, causal"),
        Part("output head and loss", "6 FLOP per weight of the head and token", tokens * flops["head"], "FLOP", 0.6,
             "linear_cross_entropy"),
        Part("norms, activation, rotation", "2 bytes for each of 18·E + 8·F + 4·(H + K)·D numbers per layer and token",
             tokens * streamed, "bytes", 0.8, "rms_norm"),
        Part("Newton-Schulz of Muon", "5 rounds of 2·(2·E·E·n + E³) FLOP per matrix of E rows and n columns", square,
             "FLOP", 0.6, "newton_schulz"),
        Part("optimizer", "20 bytes per weight of a matrix, 28 per other weight",
             20 * matrices + 28 * (model.parameters - matrices), "bytes", 0.8, "adamw"),
        Part("gradients between GPUs", "2·(GPUs - 1) / GPUs times 4 bytes per weight, not hidden behind anything",
             2 * (gpus - 1) / gpus * 4 * model.parameters, "bytes sent", 0.7),
    ]  # fmt: skip


def rate(part: Part, reports: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """The rate of a part, and where it is from."""
    for report in sorted(reports, key=lambda each: each["machine"]["time"], reverse=True):
        if part.measured == "ceiling" and (found := report["ceilings"].get("bfloat16_flops_per_s")):
            return found, f"measured: {report['name']}"
        if measured := [rate_of(each, part) for each in report["results"] if is_of(each, part)]:
            return max(measured), f"measured: {report['name']}"
    return part.assumed * part.peak, f"assumed: {part.assumed:.0%} of the datasheet"


def is_of(result: dict[str, Any], part: Part) -> bool:
    """Whether a result measured a part by our own code, in bfloat16 where that is what the part computes in."""
    is_ours = result["contender"].startswith("llmfast") and result["status"] == "ok"
    is_whole = result["pass"] == BOTH or part.measured in ("adamw", "newton_schulz")
    key = "flops" if part.unit == "FLOP" else "bytes"
    is_wanted = result["dtype"] == "bfloat16" or part.measured == "adamw"
    return is_ours and is_whole and is_wanted and result["op"] == part.measured and bool(result[key])


def rate_of(result: dict[str, Any], part: Part) -> float:
    return result["flops" if part.unit == "FLOP" else "bytes"] / result["median_s"]


def read_reports(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What the files hold that were measured on this GPU."""
    reports = [{"name": file.name, **json.loads(file.read_text(encoding="utf-8"))} for file in sorted(files)]
    return [each for each in reports if GPU in (each["machine"].get("gpu") or "")]


def main(recipe: Path, folder: Path, files: Sequence[Path]) -> None:
    plan = make_plan(read_recipe(recipe), recipe, Path("runs"), size="gpu", changes={})
    steps = {step.name: step for step in plan.steps}
    vocabulary = parse(steps["tokenizer"].words)[1]["vocab_size"]
    config = with_settings(parse(steps["base"].words)[1]["config"], {"model.vocab_size": vocabulary})
    gpus = steps["base"].processes
    tokens = config.training.batch_size * config.model.context // gpus
    reports = read_reports(files)
    rows = []
    for part in parts(config.model, tokens, gpus):
        per_second, source = rate(part, reports)
        row = {"part": part.name, "counted": part.formula, "work": part.work, "unit": part.unit, "rate": per_second}
        rows.append(row | {"source": source, "milliseconds": 1e3 * part.work / per_second})
    seconds = sum(row["milliseconds"] for row in rows) / 1e3
    minutes = seconds * config.training.steps / 60
    content = {
        "parts": rows,
        "step_seconds": seconds,
        "minutes": minutes,
        "dollars": DOLLARS * gpus * minutes / 60,
        "share_of_peak": tokens * config.model.flops_per_token() / seconds / FLOPS,
        "measured": sum(row["source"].startswith("measured") for row in rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predicted.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(
        f"{seconds:.2f} s a step, {minutes:.0f} minutes; {content['measured']} of {len(rows)} parts measured on {GPU}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(file) for file in glob.glob(sys.argv[3])])
