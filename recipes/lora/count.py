"""Counts what adapters train on the shape of bloomz-560m, without its weights: writes FOLDER/counts.json."""

import json
import sys
from pathlib import Path

import torch
from transformers import BloomConfig, BloomForCausalLM

from llmfast.finetuning import LoraConfig, add_adapter, count_parameters

CONFIGURATIONS = {
    "r 4, query_key_value": LoraConfig(rank=4, target_modules=("query_key_value",), bias="lora_only"),
    "r 64, query_key_value and dense": LoraConfig(
        rank=64, target_modules=("query_key_value", "dense"), bias="lora_only"
    ),
}


def main(folder: Path) -> None:
    shape = BloomConfig(vocab_size=250_880, hidden_size=1024, n_layer=24, n_head=16)
    records = []
    for name, config in CONFIGURATIONS.items():
        with torch.device("meta"):
            counted = count_parameters(add_adapter(BloomForCausalLM(shape), config))
        records.append({"adapter": name, "trained": counted.trained, "all": counted.all, "share": counted.share})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "counts.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
