"""Fits a scaling law to the runs of a sweep, with its uncertainty, and tests it on the largest run.

python recipes/model-size/fit.py SWEEP LAW.json
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from llmfast.config import load
from llmfast.evaluation.scaling import ScalingLaw, bootstrap, fit_scaling_law
from llmfast.models.size import parameters_by_part
from llmfast.training.config import RunConfig

DRAWS = 200


def point(record: dict[str, Any]) -> dict[str, Any]:
    """What the law is fitted to, of one run: parameters count without the embedding table, as in Kaplan et al. 2020."""
    config = load(RunConfig, Path(record["folder"]) / "config.yaml")
    parts = parameters_by_part(config.model)
    tokens = record["steps"] * config.training.batch_size * config.model.context
    return {
        "size": record["settings"]["size"],
        "parameters": sum(parts.values()) - parts["embedding"],
        "tokens": tokens,
        "flops": tokens * record["flops_per_token"],
        "loss": record["loss"],
    }


def columns(points: list[dict[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    n, d, losses = ([each[name] for each in points] for name in ("parameters", "tokens", "loss"))
    return n, d, losses


def laws_of(points: list[dict[str, Any]]) -> tuple[ScalingLaw, list[ScalingLaw]]:
    """The law, and those of resampled runs."""
    return fit_scaling_law(*columns(points)), bootstrap(*columns(points), range(len(points)), count=DRAWS)


def interval(values: list[float]) -> dict[str, float]:
    low, high = np.percentile(values, [5, 95])
    return {"low": float(low), "high": float(high)}


def main() -> None:
    sweep, out = map(Path, sys.argv[1:])
    records = json.loads((sweep / "results.json").read_text(encoding="utf-8"))
    points = sorted(map(point, records), key=lambda each: (each["parameters"], each["tokens"]))
    law, draws = laws_of(points)
    for each in points:
        each["predicted"] = law.loss(each["parameters"], each["tokens"])
    *others, largest = points
    law_of_others, draws_of_others = laws_of(others)
    n, d = largest["parameters"], largest["tokens"]
    found = {
        "law": {
            name: {"value": value} | interval([getattr(each, name) for each in draws])
            for name, value in dataclasses.asdict(law).items()
        },
        "points": points,
        "left_out": {
            "size": largest["size"],
            "measured": largest["loss"],
            "predicted": law_of_others.loss(n, d),
            **interval([each.loss(n, d) for each in draws_of_others]),
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
