"""What PEFT's files call the layers of a model: as the model does, or as transformers does for this decoder."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from llmfast.integrations.huggingface.config import families_of
from llmfast.integrations.huggingface.families import DECODERS
from llmfast.integrations.huggingface.family import Family
from llmfast.models.adapters.lora import WHOLE
from llmfast.models.adapters.targets import Target, candidates, modules_of
from llmfast.models.decoder import Decoder

Rows = slice


class Naming:
    """The names that the model itself has."""

    transposed = False
    """Whether the linear layers of the model in the files are stored transposed (``fan_in_fan_out``)."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.targets = {target.name: target for target in candidates(model)}
        """What can get an adapter, by its name in the files: parts of a fused layer where the files have them apart."""
        self.modules = {name: [name] for name, _ in modules_of(model)}
        """The modules of the files that each module of the model is."""

    def of(self, target: Target) -> list[tuple[str, Rows]]:
        """The layers of the files that an update is for, and its rows that are each one's."""
        return [(target.name, slice(None))]

    def parts(self, module: str, leaf: str, tensor: Tensor) -> dict[str, Tensor]:
        """The entries of the files that a tensor of a module is, as views: MODULE.LEAF."""
        return {f"{module}.{leaf}": tensor}

    def ours(self, theirs: list[str]) -> list[str]:
        """The modules of the model that modules of the files are.

        Raises:
            ValueError: one that is none, or a part of one.
        """
        found = [ours for ours, names in self.modules.items() if set(names) <= set(theirs)]
        covered = {name for ours in found for name in self.modules[ours]}
        if left := sorted(set(theirs) - covered):
            raise ValueError(f"the adapter trains {left[0]} in full, which is no module of this model by itself")
        return found


class FamilyNaming(Naming):
    """The names that a family of transformers has for what this decoder is."""

    def __init__(self, decoder: Decoder, family: Family):
        super().__init__(decoder)
        self.family = family
        self.vocab_size = decoder.config.vocab_size
        self.transposed = self.family.conv1d
        self.sizes = {
            f"{name}.{child}".lstrip("."): list(parts.values())
            for name, module in decoder.named_modules()
            for child, parts in getattr(module, "fused", {}).items()
        }
        self.modules = {name: self._modules(name, module) for name, module in modules_of(decoder)}
        self.modules = {name: theirs for name, theirs in self.modules.items() if theirs}
        self.targets = {}
        for target in candidates(decoder):
            theirs = self.modules.get(target.module, [])
            # A whole layer that is one of theirs, or a part of one that they have apart.
            if (target.part == WHOLE) == (len(theirs) == 1):
                self.targets[self.of(target)[0][0]] = target

    def _modules(self, name: str, module: nn.Module) -> list[str]:
        if not list(module.parameters(recurse=False)):
            return []
        try:
            return [each.removesuffix(".weight") for each in self.family.their_names(f"{name}.weight")]
        except KeyError:  # a module of ours that the family has not
            return []

    def of(self, target: Target) -> list[tuple[str, Rows]]:
        theirs = self.modules[target.module]
        if target.part != WHOLE:
            if len(theirs) == 1:
                whole = f"{target.module}, of which {target.name} is a part"
                raise ValueError(f"the files of {self.family.model_type} have {whole}, in one layer: adapt all of it")
            fused = [each for each in candidates(self.model) if each.module == target.module and each.part != WHOLE]
            return [(theirs[[each.part for each in fused].index(target.part)], slice(None))]
        return list(zip(theirs, self._rows(target.module, target.rows), strict=True))

    def has(self, keys: list[str]) -> bool:
        """Whether every entry of a file, with a dot before its name, belongs to a module of the family."""
        known = tuple(f".{name}." for names in self.modules.values() for name in names)
        return all(key.startswith(known) for key in keys)

    def parts(self, module: str, leaf: str, tensor: Tensor) -> dict[str, Tensor]:
        if module in ("embedding", "head"):
            tensor = tensor[: self.vocab_size]
        theirs, rows = self.modules[module], self._rows(module, len(tensor))
        if self.transposed and module.startswith("blocks.") and tensor.ndim == 2:
            tensor = tensor.T
            return {f"{theirs[0]}.{leaf}": tensor}
        return {f"{name}.{leaf}": tensor[where] for name, where in zip(theirs, rows, strict=True)}

    def _rows(self, module: str, rows: int) -> list[Rows]:
        """The rows of a layer that are each of theirs."""
        if len(self.modules[module]) == 1:
            # Rows that fill up the output head are none of theirs.
            return [slice(0, self.vocab_size if module == "head" else rows)]
        ends = [0, *itertools.accumulate(self.sizes[module])]
        return [slice(start, end) for start, end in itertools.pairwise(ends)]


def naming_of(model: nn.Module, keys: list[str] | None = None) -> Naming:
    """How files call the layers of ``model``; ``keys`` are those of a file that is read.

    This decoder is called as transformers does where a family describes it; else, and in files that say so, by its
    own names.
    """
    if isinstance(model, Decoder) and not (keys and any(".blocks." in key for key in keys)):
        namings = [FamilyNaming(model, DECODERS[kind]) for kind in families_of(model.config)]
        # Several families compute the same by other names (Phi-3 and Mistral).
        fitting = [each for each in namings if keys and each.has(keys)]
        if namings:
            return (fitting or namings)[0]
    return Naming(model)


def shortest(chosen: list[str], every: list[str]) -> list[str]:
    """The names ``chosen`` by as few ends of names as select these and no others of ``every``.

    >>> shortest(["a.0.q", "a.1.q", "a.0.k"], ["a.0.q", "a.1.q", "a.0.k", "a.1.k"])
    ['a.0.k', 'q']
    """
    wanted = set(chosen)
    by_end: dict[str, set[str]] = {}
    for name in every:
        by_end.setdefault(name.rpartition(".")[2], set()).add(name)
    ends = {name.rpartition(".")[2] for name in wanted}
    whole = {end for end in ends if by_end.get(end, set()) <= wanted}
    return sorted(whole | {name for name in wanted if name.rpartition(".")[2] not in whole})
