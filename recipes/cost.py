"""Predicts what the GPU form of a pipeline costs, from its own settings:

    python recipes/cost.py recipes/assistant/pipeline.yaml FOLDER

FOLDER/cost.json has the tokens, the FLOPs and the time of each stage that trains on given texts, on H100s at shares of
their peak that are assumed. Rollouts are not in it: how fast answers are sampled does not depend on FLOPs.
"""

import json
import sys
from pathlib import Path

from llmfast.cli import parse
from llmfast.pipeline.recipe import make_plan, read_recipe
from llmfast.training.preflight.hardware import PEAK_TFLOPS
from llmfast.training.sweep import with_settings

GPU = "H100"
SHARES = (0.3, 0.4, 0.5)  # of the peak
DOLLARS = 2.5  # for an hour of one GPU, assumed
# Rows for each example, and FLOPs beside those of one training step. DPO reads two answers to each prompt, and its
# reference reads them once more, without the backward pass, which takes two thirds of a step.
ROWS = {"train": 1, "sft": 1, "dpo": 2}
WORK = {"train": 1.0, "sft": 1.0, "dpo": 4 / 3}


def main(recipe: Path, folder: Path) -> None:
    plan = make_plan(read_recipe(recipe), recipe, Path("runs"), size="gpu", changes={})
    stages, model, vocabulary = {}, None, {}
    for step in plan.steps:
        command = step.words[0]
        if step.words[:2] == ["tokenizer", "train"]:
            vocabulary = {"model.vocab_size": parse(step.words)[1]["vocab_size"]}
        if command not in WORK:
            continue
        config = parse(step.words)[1]["config"]
        if command == "train":  # what is finetuned has the shape of what was pretrained
            model = with_settings(config, vocabulary).model
        tokens = config.training.steps * config.training.batch_size * ROWS[command] * model.context
        flops = tokens * model.flops_per_token() * WORK[command]
        minutes = {str(share): flops / (share * PEAK_TFLOPS[GPU] * 1e12 * step.processes) / 60 for share in SHARES}
        stages[step.name] = {"tokens": tokens, "flops": flops, "gpus": step.processes, "minutes": minutes}
    total = {share: sum(stage["minutes"][share] for stage in stages.values()) for share in map(str, SHARES)}
    hours = {share: sum(stage["minutes"][share] * stage["gpus"] for stage in stages.values()) / 60 for share in total}
    content = {
        "parameters": model.parameters,
        "flops_per_token": model.flops_per_token(),
        "stages": stages,
        "minutes": total,
        "dollars": {share: DOLLARS * value for share, value in hours.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cost.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{model.parameters:,} parameters, {total['0.4']:.0f} minutes at 40% of the peak of {GPU}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
