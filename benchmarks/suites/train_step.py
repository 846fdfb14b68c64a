"""Training steps of whole models: ours, a plain PyTorch loop in the style of nanoGPT, and transformers.

All have the same weights, see the same random tokens and do the same work: the loss, its gradients, clipping, AdamW.
The check uses the first tokens of one sequence and ignores the other targets. It compares the loss, the gradient of
the embedding table, and the table after a step. Memory is that of weights and optimizer state plus the peak of a
step. Each uses fused AdamW where it does so by default: nanoGPT's loop on a GPU only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from llmfast.commands.quickstart import quickstart_config
from llmfast.models.config import DecoderConfig, RopeScaling
from llmfast.models.decoder import Decoder
from llmfast.models.presets import preset
from llmfast.training.config import TrainingConfig
from llmfast.training.optimizers.build import build_optimizers

from ..contenders import Contender
from ..hugging_face import same_model, unfit
from ..jobs import SECONDS, Job, Program
from ..plain import PlainDecoder
from ..results import OURS, PYTORCH

IGNORED = -100
CHECKED = 64  # targets
LEARNING_RATE, BETAS = 1e-3, (0.9, 0.95)
CLIP = 1.0
Loss = Callable[[Tensor, Tensor], Tensor]

SHAPES = {
    "GPT-2 124M": preset("gpt2", vocab_size=50304, dropout=0.0),
    # The context that Llama 3 was pretrained with, without scaled positions.
    "Llama 1B": preset("llama-3.2-1b", context=8192, rope_scaling=RopeScaling()),
    "Llama 8B": preset("llama-3.1-8b", context=8192, rope_scaling=RopeScaling()),
    # The models of quickstart on a CPU and on a GPU.
    "quickstart": quickstart_config("mini", data=(), vocab_size=4096, seed=0).model,
    "quickstart base": quickstart_config("base", data=(), vocab_size=4096, seed=0).model,
    "toy": DecoderConfig(vocab_size=96, width=32, layers=2, heads=2, kv_heads=1, context=32),
    "toy quickstart": DecoderConfig(96, width=32, layers=2, heads=2, context=32, scale_embedding=True, smear=True),
    "toy GPT-2": preset("gpt2", vocab_size=128, width=32, layers=2, heads=2, context=32, dropout=0.0),
}


@dataclass(frozen=True)
class Step:
    """A model by name and the number of sequences per batch."""

    model: str
    batch: int
    sequence: int
    dtype: torch.dtype = torch.bfloat16
    compiles: bool = True


def steps(size: str) -> tuple[str, list[Step]]:
    """The device and the jobs to measure on it."""
    both = torch.float32, torch.bfloat16
    if size == "tiny":
        models = "toy", "toy GPT-2", "toy quickstart"
        return "cpu", [Step(model, 2, 16, dtype, compiles=False) for model in models for dtype in both]
    if size == "cpu-quick":
        return "cpu", [Step("quickstart", 4, 128, dtype, compiles=False) for dtype in both]
    if size == "cpu":
        small = [Step("quickstart", 16, 128, dtype) for dtype in both]
        large = [Step("GPT-2 124M", 1, 256, dtype, compiles=False) for dtype in both]  # compiling takes minutes
        return "cpu", small + large
    quick = [Step("GPT-2 124M", 16, 1024)]
    return "cuda", quick if size == "quick" else [
        *quick,
        Step("Llama 1B", 4, 4096),
        Step("quickstart base", 64, 512),
    ]


def cases(size: str) -> Iterator[Job]:
    device, wanted = steps(size)
    for step in wanted:
        yield job(step, device)


def job(step: Step, device: str) -> Job:
    config = SHAPES[step.model]
    generator = torch.Generator().manual_seed(0)
    ours = functools.cache(lambda: drawn(config))
    draw = torch.randint(config.vocab_size, (step.batch, step.sequence + 1), generator=generator)
    tokens, targets = (each.contiguous().to(device) for each in (draw[:, :-1], draw[:, 1:]))

    def plain() -> PlainDecoder:
        model = PlainDecoder(config)
        model.load_state_dict(ours().state_dict())
        return model

    def transformers() -> nn.Module:
        return same_model(config, ours().state_dict())

    def contender(name: str, build: Callable[[], nn.Module], compiled: bool = False, **options) -> Contender:
        def program() -> Program:
            model = build().to(device)
            return training(name, model, tokens, targets, step.dtype, compiled)

        return Contender(name, program, **options)

    contenders = [contender(OURS, decoder(ours)), contender(PYTORCH, plain)]
    if step.compiles:
        contenders.insert(1, contender(f"{OURS} compiled", decoder(ours), True))
        contenders.append(contender(f"{PYTORCH} compiled", plain, True))
    contenders.append(contender("transformers", transformers, module="transformers", unfit=unfit(config)))

    few = min(CHECKED, step.sequence)
    part = tokens[:1, :few].contiguous(), targets[:1, :few].contiguous()

    def evidence(dtype: torch.dtype) -> dict[str, Tensor]:
        model = plain().to(device, torch.float64 if dtype == torch.float64 else torch.float32)
        return training(PYTORCH, model, *part, dtype).evidence()

    count = step.batch * step.sequence
    # Weights are read forward and backward; gradients, weights and both moments are read and written.
    moved = 4 * config.parameters * (2 + 2 + 6)
    return Job(
        op=step.model,
        shape={"B": step.batch, "S": step.sequence},
        dtype=step.dtype,
        pass_="training step",
        exact=lambda: evidence(torch.float64),
        plain=lambda: evidence(step.dtype),
        contenders=contenders,
        work=(moved, int(count * config.flops_per_token(step.sequence))),
        tokens=count,
        seconds=SECONDS[device],
    )


def drawn(config: DecoderConfig) -> Decoder:
    """Our model with random weights, including those that are initialized to 0."""
    generator = torch.Generator().manual_seed(0)
    model = Decoder(config, generator=generator)
    if model.smear is not None:
        nn.init.normal_(model.smear.weight, std=0.1, generator=generator)
    return model


def decoder(ours: Callable[[], Decoder]) -> Callable[[], Decoder]:
    """A copy of the model, because training changes it."""

    def build() -> Decoder:
        model = Decoder(ours().config)
        model.load_state_dict(ours().state_dict())
        return model

    return build


def optimizers(name: str, model: nn.Module) -> list[Optimizer]:
    if name.startswith(OURS):
        beta1, beta2 = BETAS
        config = TrainingConfig(
            optimizer="adamw", learning_rate=LEARNING_RATE, beta1=beta1, beta2=beta2, weight_decay=0.0
        )
        return build_optimizers(model, config)
    on_gpu = next(model.parameters()).is_cuda
    fused = on_gpu or not name.startswith(PYTORCH)
    return [AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=fused)]


def loss_of(model: nn.Module) -> Loss:
    """The mean loss; transformers is given labels that it does not shift."""
    if not hasattr(model, "get_input_embeddings"):
        return model
    return lambda tokens, targets: model(tokens, labels=targets, shift_labels=targets, use_cache=False).loss


def table_of(model: nn.Module) -> Tensor:
    return model.embedding.weight if hasattr(model, "embedding") else model.get_input_embeddings().weight


def training(
    name: str,
    model: nn.Module,
    tokens: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    compiled: bool = False,
    whole: bool = False,
) -> Program:
    """A training step, with the evidence of the first one: of a few targets, or of the ``whole`` batch."""
    loss_function = loss_of(model)
    if compiled:
        loss_function = torch.compile(loss_function, dynamic=False)
    some = torch.full_like(targets, IGNORED)
    few = min(CHECKED, targets.shape[1])
    some[:1, :few] = targets[:1, :few]
    some = targets if whole else some
    return updating(
        model,
        optimizers(name, model),
        lambda: loss_function(tokens, targets),
        dtype,
        checked=lambda: loss_function(tokens, some),
    )


def updating(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    loss: Callable[[], Tensor],
    dtype: torch.dtype,
    checked: Callable[[], Tensor] | None = None,
) -> Program:
    """A step that lowers ``loss()``, with clipping. Its evidence is that of a first one, on ``checked`` if given."""
    low = dtype in (torch.bfloat16, torch.float16)
    device = next(model.parameters()).device.type

    def gradients(loss: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad(), torch.autocast(device, dtype if low else None, enabled=low):
            found = loss()
        found.backward()
        return found.detach()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for each in optimizers:
            each.step()
            each.zero_grad()

    def evidence() -> dict[str, Tensor]:
        table = table_of(model)
        found = {"loss": gradients(checked or loss), "gradient of the embedding": table.grad.clone()}
        update()
        return found | {"embedding after a step": table.detach().clone()}

    def step() -> Tensor:
        found = gradients(loss)
        update()
        return found

    return Program(evidence, step, lambda: held(model, optimizers))


def held(model: nn.Module, optimizers: Sequence[Optimizer]) -> int:
    """Bytes of weights and optimizer state."""
    state = [value for each in optimizers for entries in each.state.values() for value in entries.values()]
    tensors = [*model.parameters(), *model.buffers(), *(each for each in state if isinstance(each, Tensor))]
    return sum(tensor.nbytes for tensor in tensors)
