"""The tuned lens (Belrose et al. 2023): an affine map for each layer, fitted so that the model's final norm and head,
applied to a translated state, predict what the whole model predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from llmfast.models.tensors import checksum, model_tensors, write_tensors
from llmfast.visualization.residual import residual_stream
from llmfast.visualization.structure import embedding_of, shape_of

_MODEL = "model_sha256"


class TunedLens(nn.Module):
    """Affine maps of the states (…, E) of each layer; the identity before they are fitted, and always for the last."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for each in self.maps:
            nn.init.zeros_(each.weight)
            nn.init.zeros_(each.bias)

    def forward(self, state: Tensor, place: int) -> Tensor:
        """The translation of a state (…, E): of what enters the first layer for place 0, of what leaves the last,
        which stays as it is, for place ``layers``.

        Raises:
            ValueError: the lens has another number of layers or another width.
        """
        if place == len(self.maps):
            return state
        if place > len(self.maps) or self.maps[place].in_features != state.shape[-1]:
            width = self.maps[0].in_features
            raise ValueError(f"the lens is of {len(self.maps)} layers of width {width}, the model is of another shape")
        return (state + self.maps[place](state.float())).to(state.dtype)


def fit_tuned_lens(
    model: nn.Module,
    windows: Sequence[Sequence[int]],
    *,
    steps: int = 200,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
    seed: int = 0,
    report: Callable[[int, list[float]], None] = lambda step, divergences: None,
) -> TunedLens:
    """Fit a tuned lens by Adam to the divergence from the model's own predictions, averaged over tokens.

    Args:
        model: a ``Decoder`` or a decoder-only model of transformers; nothing of it is changed.
        windows: token ids to learn from, all of one length.
        steps, batch_size, learning_rate: of the fit; the learning rate falls linearly to 0.
        seed: of the order in which the windows are taken.
        report: called after each step with its number and each layer's divergence in nats per token.

    Raises:
        ValueError: no windows, or of different lengths; a setting that is not positive.
    """
    if not windows or len({len(each) for each in windows}) != 1:
        raise ValueError("windows must hold token ids of one length, and there must be at least one window")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("learning_rate", learning_rate)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    weight = embedding_of(model).weight
    lens = TunedLens(shape_of(model).layers, weight.shape[1]).to(weight.device)
    optimizer = torch.optim.Adam(lens.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, total_iters=steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        drawn = torch.randint(len(windows), (batch_size,), generator=generator).tolist()
        batch = torch.tensor([list(windows[place]) for place in drawn], device=weight.device)
        report(step + 1, _add_gradients(model, lens, batch))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return lens.eval().requires_grad_(False)


def _add_gradients(model: nn.Module, lens: TunedLens, batch: Tensor) -> list[float]:
    """Add the gradients of a batch, layer by layer, so that one layer's logits are held at a time."""
    with torch.no_grad():
        stream = residual_stream(model, batch)
        final = stream.logits.log_softmax(-1)
    divergences = []
    for place, parameters in enumerate(lens.maps):
        log_probs = stream.read_out(lens(stream.states[place], place)).log_softmax(-1)
        divergence = F.kl_div(log_probs, final, log_target=True, reduction="none").sum(-1).mean()
        # Of the map alone: a model in training keeps its own gradients as they are.
        own = list(parameters.parameters())
        for parameter, gradient in zip(own, torch.autograd.grad(divergence, own), strict=True):
            parameter.grad = gradient
        divergences.append(divergence.item())
    return divergences


def save_tuned_lens(lens: TunedLens, path: Path, model: nn.Module) -> None:
    """Write a lens as a safetensors file, with the checksum of the model that it was fitted to."""
    write_tensors(path, dict(lens.state_dict()), {_MODEL: checksum(model_tensors(model))})


def load_tuned_lens(path: Path, model: nn.Module) -> TunedLens:
    """The lens in a file.

    Raises:
        ValueError: the file is missing, damaged or no lens, or was fitted to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise ValueError(f"tuned: {path} does not exist: fit a lens with llmfast look tune") from None
    except SafetensorError as error:
        raise ValueError(f"tuned: {path} is damaged or no safetensors file: {error}") from None
    if _MODEL not in metadata:
        raise ValueError(f"tuned: {path} holds no tuned lens")
    if metadata[_MODEL] != checksum(model_tensors(model)):
        raise ValueError(f"tuned: the lens in {path} was fitted to another model or to other weights of it")
    weight = embedding_of(model).weight
    lens = TunedLens(shape_of(model).layers, weight.shape[1])
    lens.load_state_dict(tensors)
    return lens.to(weight.device).eval().requires_grad_(False)
