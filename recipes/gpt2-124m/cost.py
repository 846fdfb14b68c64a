"""What GPT-2 124M on 10 billion tokens takes on 8 GPUs, by its configuration: arithmetic, time, memory and money.

    python recipes/gpt2-124m/cost.py recipes/gpt2-124m/gpt2-124m.yaml COST.json

Time follows from FLOPs by the share of the peak that is reached (MFU); which share that is, a GPU must show.
"""

import json
import sys
from pathlib import Path

from llmfast.config import load
from llmfast.training.config import RunConfig
from llmfast.training.preflight.memory import TrainingSetup, training_memory

GPUS = 8
PEAK = 989.4e12  # dense bfloat16 FLOP/s of an H100 SXM, by its datasheet
PRICE = 3.0  # dollars for an hour of one GPU, as rented
SHARES = (0.3, 0.4, 0.5)


def main() -> None:
    config_file, out = map(Path, sys.argv[1:])
    config = load(RunConfig, config_file)
    training, model = config.training, config.model
    tokens = training.steps * training.batch_size * model.context
    flops = tokens * model.flops_per_token()
    rows = training.batch_size // training.accumulate // GPUS
    memory = training_memory(model, TrainingSetup(rows, model.context, "bfloat16", training.optimizer))
    found = {
        "size": {
            "parameters": model.parameters,
            "tokens": tokens,
            "flops": flops,
            "flops_per_token": model.flops_per_token(),
            "rows": rows,
            "memory_gib": sum(memory.values()) / 2**30,
        },
        "times": [
            {
                "mfu": share,
                "tokens_per_second": GPUS * PEAK * share / model.flops_per_token(),
                "minutes": flops / (GPUS * PEAK * share) / 60,
                "gpu_hours": flops / (PEAK * share) / 3600,
                "dollars": PRICE * flops / (PEAK * share) / 3600,
            }
            for share in SHARES
        ],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
