"""One library with one model, in a process of its own: ``python -m benchmarks.decoding.worker LIBRARY WIDTH THREADS
MODEL PATH``. It reads jobs as lines of JSON and answers each with seconds.

A job ``{"batch": B, "prompt": P, "new": N}`` reads B prompts of P tokens and adds N tokens to each, greedily.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.native import NativeRunner
from llmfast.models.decoder import Decoder

from ..suites.train_step import SHAPES

Generate = Callable[[list[list[int]], int], object]  # prompts, new tokens


def llmfast(width: str, threads: int, model: str, path: Path) -> Generate:
    tensors = torch.load(path, mmap=True, weights_only=True)
    runner = NativeRunner(Decoder.from_tensors(SHAPES[model], tensors), width, threads=threads)
    engine = Engine(runner=runner, config=EngineConfig(prefix_sharing=False, prefill_chunk=1024))
    return lambda prompts, new: engine.generate(prompts, Sampling(temperature=0, max_tokens=new))


def transformers(width: str, threads: int, model: str, path: Path) -> Generate:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, width)).eval()

    @torch.no_grad()
    def generate(prompts: list[list[int]], new: int) -> object:
        tokens = torch.tensor(prompts)
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        return network.generate(tokens, attention_mask=torch.ones_like(tokens), **options)

    return generate


def ctranslate2(width: str, threads: int, model: str, path: Path) -> Generate:
    import ctranslate2

    generator = ctranslate2.Generator(str(path), compute_type=width, intra_threads=threads, inter_threads=1)

    def generate(prompts: list[list[int]], new: int) -> object:
        texts = [[f"t{token}" for token in prompt] for prompt in prompts]
        return generator.generate_batch(
            texts, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, max_batch_size=0
        )

    return generate


LIBRARIES = {each.__name__: each for each in (llmfast, transformers, ctranslate2)}


def main(library: str, width: str, threads: str, model: str, path: str) -> None:
    torch.set_num_threads(int(threads))
    generate = LIBRARIES[library](width, int(threads), model, Path(path))
    vocabulary = SHAPES[model].vocab_size
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(vocabulary, (job["batch"], job["prompt"]), generator=generator).tolist()
        start = time.perf_counter()
        generate(prompts, job["new"])
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
