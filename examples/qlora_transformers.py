"""QLoRA in one file: trains adapters of a 4-bit transformers model on the source of Python's standard library.

    python examples/qlora_transformers.py                                    a small model, on a CPU in a minute
    python examples/qlora_transformers.py --shape 8b --length 2048 --device cuda
    python examples/qlora_transformers.py --shape 8b --length 2048 --device cuda --with peft

The model has random weights, so that nothing is downloaded. ``--with peft`` does the same with bitsandbytes and peft,
to compare time and memory per step. It prints a line of JSON per step and one summary at the end.
"""

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from llmfast.finetuning import LoraConfig, add_adapter
from llmfast.models.quantize import quantize_model

SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
KEY_HEADS = {"tiny": 2, "8b": 8}
VOCABULARIES = {"tiny": 256, "8b": 128256}  # the text is bytes and uses only the first 256


def build_model(shape: str, device: str) -> LlamaForCausalLM:
    config = LlamaConfig(**SHAPES[shape], vocab_size=VOCABULARIES[shape], num_key_value_heads=KEY_HEADS[shape])
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(default)
    return model.requires_grad_(False)


def with_llmfast(model: nn.Module, rank: int, alpha: float) -> nn.Module:
    quantize_model(model, skip=("lm_head",))
    return add_adapter(model, LoraConfig(rank=rank, alpha=alpha))


def with_peft(model: nn.Module, rank: int, alpha: float) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit
    from peft import LoraConfig, get_peft_model

    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and name != "lm_head":
            packed = Linear4bit(layer.in_features, layer.out_features, False, layer.weight.dtype, quant_type="nf4")
            packed.weight = Params4bit(layer.weight.data, quant_type="nf4", module=packed)
            model.set_submodule(name, packed.to(layer.weight.device))
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def text() -> Tensor:
    """The source of the standard library as bytes."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return torch.frombuffer(bytearray(b"\n".join(file.read_bytes() for file in files)), dtype=torch.uint8)


def batches(data: Tensor, batch: int, length: int, device: str):
    choose = random.Random(0)
    while True:
        starts = [choose.randrange(len(data) - length) for _ in range(batch)]
        yield torch.stack([data[start : start + length].long() for start in starts]).to(device)


def train(model: nn.Module, options: argparse.Namespace) -> dict[str, float]:
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=options.learning_rate, weight_decay=0.0)
    losses, seconds = [], []
    model.train()
    if options.checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    stream = batches(text(), options.batch, options.length, options.device)
    for step, tokens in zip(range(options.steps), stream, strict=False):
        start = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the GPU, so that the step is timed
        seconds.append(time.perf_counter() - start)
        print(json.dumps({"step": step, "loss": round(losses[-1], 4), "seconds": round(seconds[-1], 4)}))
    last = max(1, len(losses) // 10)
    found = {
        "first_loss": statistics.mean(losses[:last]),
        "last_loss": statistics.mean(losses[-last:]),
        "seconds_per_step": statistics.median(seconds[len(seconds) // 3 :]),
    }
    if options.device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="shape of the model")
    parser.add_argument("--with", dest="how", choices=("llmfast", "peft"), default="llmfast")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="sequences per step")
    parser.add_argument("--length", type=int, default=128, help="bytes per sequence")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--alpha", type=float, default=32.0, help="the adapters are scaled by alpha / rank")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--checkpoint", action="store_true", help="recompute each layer in the backward pass")
    options = parser.parse_args()
    model = build_model(options.shape, options.device)
    model = {"llmfast": with_llmfast, "peft": with_peft}[options.how](model, options.rank, options.alpha)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    print(json.dumps({"with": options.how, **train(model, options)}))


if __name__ == "__main__":
    main()
