"""The optimizers of a run by name, and their state as named tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from torch import Tensor, nn
from torch.optim import Optimizer

from llmfast.training.config import TrainingConfig
from llmfast.training.distribution.sharding import Sharding
from llmfast.training.optimizers.adamw_8bit import AdamW8bit, with_numbers
from llmfast.training.optimizers.registry import OPTIMIZERS


def build_optimizers(
    model: nn.Module, config: TrainingConfig, shardings: Mapping[str, Sharding] = MappingProxyType({})
) -> list[Optimizer]:
    """The optimizers of the trained parameters by ``training.optimizer``; frozen parameters reach none of them.

    AdamW takes everything, Muon the matrices inside blocks, with AdamW for the rest (stacks of experts, too). Matrices
    decay, those of experts too; norms, biases and the embedding table do not: a norm's scale has no reason to be small,
    and decay would shrink the rows of rare tokens between their few gradients.

    Args:
        model: whose parameters are trained.
        config: the choice of optimizer, rates and decay.
        shardings: those of the parameters that tensor parallelism divides, by name.
    """
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    inside = [parameter for name, parameter in parameters.items() if is_matrix_of_block(name, parameter)]
    matrices = [parameter for parameter in inside if parameter.ndim == 2]
    stacks = [parameter for parameter in inside if parameter.ndim > 2]
    decaying = set(map(id, matrices + stacks))
    rest = [parameter for parameter in parameters.values() if id(parameter) not in decaying]
    choice = OPTIMIZERS[config.optimizer]
    factors = {id(parameters[name]): factor for name, factor in layer_factors(parameters, config.layer_decay).items()}
    optimizers: list[Optimizer] = []
    if choice.matrices is not None and matrices:
        own = {parameters[name]: each for name, each in shardings.items() if name in parameters}
        rate = config.matrix_learning_rate
        optimizers.append(choice.matrices(_by_rate(matrices, factors, rate), config, own))
        matrices = []
    groups = [
        group | {"weight_decay": decay}
        for chosen, decay in ((matrices + stacks, config.weight_decay), (rest, 0.0))
        for group in _by_rate(chosen, factors, config.learning_rate)
    ]
    if groups:
        optimizers.append(choice.rest(groups, config))
    return optimizers


def is_matrix_of_block(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix of a block, or a stack of them. Norms whose heads, and biases whose experts, have a row
    each have two dimensions and are none."""
    return ".blocks." in f".{name}" and parameter.ndim >= 2 and not _NO_MATRIX.search(name)


_NO_MATRIX = re.compile(r"(_norm\.weight|bias)$")


def layer_factors(names: Iterable[str], decay: float) -> dict[str, float]:
    """The factor on the learning rate of each parameter by name, by the depth of its layer (``training.layer_decay``).

    >>> layer_factors(["embedding.weight", "blocks.0.norm.weight", "blocks.1.norm.weight", "head.weight"], 0.5)
    {'embedding.weight': 0.125, 'blocks.0.norm.weight': 0.25, 'blocks.1.norm.weight': 0.5, 'head.weight': 1.0}
    """
    blocks = {name: int(found[1]) for name in names if (found := re.search(r"(?:^|\.)blocks\.(\d+)\.", name))}
    top = max(blocks.values(), default=-1) + 1

    def below(name: str) -> int:
        """How many steps below the output head."""
        if name in blocks:
            return top - blocks[name]
        return top + 1 if _BEFORE_BLOCKS.search(name) else 0

    return {name: decay ** below(name) for name in names}


_BEFORE_BLOCKS = re.compile(r"(?:^|\.)(embedding|positions|smear)\.")


def _by_rate(parameters: list[Tensor], factors: dict[int, float], rate: float) -> list[dict]:
    """Groups of equal factors, each with its learning rate."""
    groups: dict[float, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        groups[factors[id(parameter)]].append(parameter)
    return [{"params": chosen, "lr": factor * rate} for factor, chosen in groups.items()]


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group's rate to ``factor`` times its peak, the rate it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("peak_lr", group["lr"])


def optimizer_tensors(optimizers: list[Optimizer], model: nn.Module, *, divided: bool = False) -> dict[str, Tensor]:
    """The state of all optimizers as tensors named PARAMETER/ENTRY, as in ``blocks.0.attention.out.weight/exp_avg``.

    Of a model that is divided between processes, 8-bit moments are given as numbers: their codes hold for these parts.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{entry}": value
        for optimizer in optimizers
        for parameter, entries in optimizer.state.items()
        for entry, value in (with_numbers(entries) if divided else entries).items()
    }


def load_optimizer_tensors(optimizers: list[Optimizer], model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    parameters = dict(model.named_parameters())
    owner = {
        id(parameter): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, entries in _by_parameter(tensors).items():
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in owner:
            raise ValueError(f"the optimizer state holds {name!r}, which is no trained parameter of the model")
        state = {entry: value.to(parameter.device) for entry, value in entries.items()}
        optimizer = owner[id(parameter)]
        if isinstance(optimizer, AdamW8bit):
            optimizer.put(parameter, state)
        else:
            optimizer.state[parameter] = state


def decoded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``optimizer_tensors`` with all 8-bit moments as numbers, so that they can be divided; their maxima are whole."""
    return {
        f"{name}/{entry}": value
        for name, entries in _by_parameter(tensors).items()
        for entry, value in with_numbers(entries, whole_maxima=True).items()
    }


def _by_parameter(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        found[name][entry] = value
    return found
