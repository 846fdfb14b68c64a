"""Predicts what the GPU form of this recipe costs, from its own settings:

    python cost.py pipeline.yaml FOLDER

FOLDER/cost.json has the tokens, the FLOPs and the time of each training stage on one H100, at shares of its peak that
are assumed.
"""

import json
import sys
from pathlib import Path

from llmfast.config import load
from llmfast.pipeline.recipe import read_recipe
from llmfast.training.config import RunConfig
from llmfast.training.preflight.hardware import PEAK_TFLOPS
from llmfast.training.sweep import with_settings

GPU = "H100"
SHARES = (0.3, 0.4, 0.5)  # of the peak: what well-tuned training loops reach at this size
PRICE = 2.5  # dollars per hour, assumed
BACKWARD = 3  # a forward and a backward pass beside a forward pass alone, which flops_per_token counts as 3


def main(recipe: Path, folder: Path) -> None:
    values = read_recipe(recipe).sizes["gpu"]
    names = ("width", "layers", "heads", "context", "vocab_size")
    config = load(RunConfig, recipe.parent / "base.yaml")
    model = with_settings(config, {f"model.{name}": values[name] for name in names}).model
    row, training = values["context"], model.flops_per_token()
    # DPO reads two answers for each pair, and the reference reads them once more without a backward pass.
    flops = {"base": training, "sft": training, "dpo": training * (1 + 1 / BACKWARD)}
    tokens = {
        name: values[f"{name}_steps"] * values[f"{name}_batch"] * row * (2 if name == "dpo" else 1) for name in flops
    }
    stages = {
        name: {
            "tokens": tokens[name],
            "flops": tokens[name] * flops[name],
            "minutes": {
                str(share): tokens[name] * flops[name] / (share * PEAK_TFLOPS[GPU] * 1e12) / 60 for share in SHARES
            },
        }
        for name in flops
    }
    total = {share: sum(stage["minutes"][share] for stage in stages.values()) for share in map(str, SHARES)}
    content = {
        "parameters": model.parameters,
        "flops_per_token": training,
        "stages": stages,
        "minutes": total,
        "dollars": {share: minutes / 60 * PRICE for share, minutes in total.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cost.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{model.parameters:,} parameters, {total['0.4']:.0f} minutes on one {GPU} at 40% of its peak")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
