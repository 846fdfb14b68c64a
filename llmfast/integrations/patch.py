"""Our kernels inside a model of Hugging Face transformers.

    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
    llmfast.patch(model)

Only this one object changes: its modules get a ``forward`` of their own, classes stay as they are, and ``unpatch``
restores everything. Parameters, names and saved files are untouched. A model of another family than those listed is
refused, and so is one that computes something else after it was patched.

If another program builds the model, patch its class first: ``llmfast.patch(Qwen3ForCausalLM)`` patches
each that is built from then on, until ``llmfast.unpatch(Qwen3ForCausalLM)``.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from llmfast.integrations.huggingface.families import FAMILIES
from llmfast.integrations.huggingface.family import Family
from llmfast.integrations.replacements import REPLACEMENTS
from llmfast.integrations.transformers_attention import NAME, register
from llmfast.integrations.verify import allowed, can_run, differences, probe

PATCHED = {kind: family for kind, family in FAMILIES.items() if family.patched}
_RECORD = "_llmfast_patch"
_INIT = "_llmfast_init"  # of a class that is patched: its own __init__, or None if it had none


@dataclass
class _Record:
    """What ``unpatch`` restores."""

    forwards: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    """Modules, the attribute that was set, and what the instance had there before, if anything."""
    attention: list[tuple[nn.Module, str]] = field(default_factory=list)
    """Models of transformers, and the attention implementation that each had before."""

    def undo(self) -> None:
        for module, name, previous in self.forwards:
            delattr(module, name)
            if previous is not None:
                setattr(module, name, previous)
        for root, name in self.attention:
            root.set_attn_implementation(name)


def patch(
    model: nn.Module | type[nn.Module],
    *,
    norms: bool = True,
    activations: bool = True,
    attention: bool = True,
    loss: bool = True,
    verify: bool = True,
) -> nn.Module | type[nn.Module]:
    """Swap a transformers model's ops for the kernels of llmfast, in place; returns the model.

    Given a class, it changes the class itself: every model of it (and of classes derived from it) that is built from
    then on, by whoever, is patched as soon as it is built. Models built before stay as they are.

    Args:
        model: A model of one of the families in ``PATCHED``, or anything that contains one (PEFT); or a class of such
            models.
        norms: rms_norm and layer_norm.
        activations: swiglu, geglu and gelu.
        attention: flash_attention, through the attention interface of transformers, and rope for queries and keys
            where the family's attention is that of Llama.
        loss: linear_cross_entropy while training with ``labels``: the output then holds the loss, and None in place
            of logits, which are never formed. Where the head is more than one linear layer (adapters, hooks), or the
            loss is another, the model's own way is taken, and one warning says so.
        verify: Run a small batch before and after, with padding and with another last token, and refuse if the
            outputs differ by more than roundings. Not done while weights are missing (on the meta device).

    Raises:
        ValueError: the model is of another family, is patched already, has an activation without a kernel, or computes
            something else after it was patched; it is then as it was before.
    """
    if isinstance(model, type):
        parts = {"norms": norms, "activations": activations, "attention": attention, "loss": loss, "verify": verify}
        return _patch_class(model, parts)
    if hasattr(model, _RECORD):
        raise ValueError("this model is patched already; llmfast.unpatch(model) takes it back")
    wanted = {"norm": norms, "activation": activations, "attention": attention, "loss": loss}
    roots = _roots(model)
    forwards = [each for root in roots for each in _forwards(root, wanted)]
    before = [_measure(root) for root in roots] if verify else []
    record = _Record()
    try:
        for module, forward in forwards:
            # accelerate keeps a module's forward under another name, and calls it from one that moves tensors.
            name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
            record.forwards.append((module, name, module.__dict__.get(name)))
            setattr(module, name, types.MethodType(forward, module))
        if attention:
            register()
            for root in roots:
                _own_configurations(root)
                record.attention.append((root, root.config._attn_implementation))
                root.set_attn_implementation(NAME)
        for root, measured in zip(roots, before, strict=verify):
            _compare(root, measured)
    except BaseException:
        record.undo()
        raise
    object.__setattr__(model, _RECORD, record)
    return model


def unpatch(model: nn.Module | type[nn.Module]) -> nn.Module | type[nn.Module]:
    """Undo ``patch``; returns the model.

    Given a class, models built from then on are plain; those that were patched stay so until each is given, too.

    Raises:
        ValueError: it is not patched.
    """
    if isinstance(model, type):
        return _unpatch_class(model)
    if not hasattr(model, _RECORD):
        raise ValueError("this model is not patched")
    getattr(model, _RECORD).undo()
    object.__delattr__(model, _RECORD)
    return model


def _patch_class(cls: type[nn.Module], parts: dict[str, bool]) -> type[nn.Module]:
    if _INIT in vars(cls):
        raise ValueError(f"{cls.__name__} is patched already; llmfast.unpatch({cls.__name__}) takes it back")
    _family_of(cls, getattr(getattr(cls, "config_class", None), "model_type", None))
    build = cls.__init__

    @functools.wraps(build)
    def build_patched(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        if not hasattr(self, _RECORD):
            patch(self, **parts)

    setattr(cls, _INIT, vars(cls).get("__init__"))
    cls.__init__ = build_patched
    return cls


def _unpatch_class(cls: type[nn.Module]) -> type[nn.Module]:
    if _INIT not in vars(cls):
        raise ValueError(f"{cls.__name__} is not patched")
    if (own := vars(cls)[_INIT]) is None:
        del cls.__init__
    else:
        cls.__init__ = own
    delattr(cls, _INIT)
    return cls


def _roots(model: nn.Module) -> list[nn.Module]:
    """The models of transformers in ``model`` that are in no other one.

    Raises:
        ValueError: there is none, or one of a family that is not patched.
    """
    from transformers import PreTrainedModel

    found = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    inside = {id(each) for module in found for each in module.modules() if each is not module}
    roots = [module for module in found if id(module) not in inside]
    for root in roots:
        _family_of(type(root), root.config.model_type)
    if not roots:
        raise _nothing_to_patch(type(model))
    return roots


def _family_of(cls: type, model_type: str | None) -> Family:
    family = PATCHED.get(model_type or "")
    is_theirs = any(_is_class_of(family, base) for base in cls.__mro__) if family else False
    if not is_theirs:
        raise _nothing_to_patch(cls)
    return family


def _is_class_of(family: Family, cls: type) -> bool:
    """Whether transformers defines this class, for this family."""
    return cls.__module__.startswith("transformers.models.") and cls.__name__.startswith(family.prefix)


def _nothing_to_patch(cls: type) -> ValueError:
    return ValueError(f"{cls.__name__} holds nothing that llmfast can patch; supported are {', '.join(PATCHED)}")


def _forwards(root: nn.Module, wanted: dict[str, bool]) -> list[tuple[nn.Module, Callable]]:
    """The modules of a model whose forward is replaced, each with its new one."""
    family = _family_of(type(root), root.config.model_type)
    found = []
    for module in root.modules():
        part, make = REPLACEMENTS.get(_kind_of(family, type(module)), ("", None))
        if wanted.get(part) and (forward := make(module)) is not None:
            found.append((module, forward))
    return found


def _kind_of(family: Family, cls: type) -> str | None:
    """What a module of this class is, by the description of the family; None for what keeps its forward."""
    if cls is nn.LayerNorm:
        return "layer_norm"
    return family.patched.get(cls.__name__.removeprefix(family.prefix)) if _is_class_of(family, cls) else None


def _own_configurations(model: nn.Module) -> None:
    """Give the model copies of its configurations: another model may share the objects."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        config = module.__dict__.get("config")
        if hasattr(config, "_attn_implementation"):
            module.config = copies.setdefault(id(config), copy.copy(config))


def _measure(root: nn.Module) -> tuple[dict, dict] | None:
    """What the model computes, and how far it may be from that after it was patched; None where it cannot run."""
    if not can_run(root):
        return None
    before, name = probe(root), root.config._attn_implementation
    root.set_attn_implementation("eager")
    try:
        limits = allowed(root, differences(before, probe(root)))
    finally:
        root.set_attn_implementation(name)
    return before, limits


def _compare(root: nn.Module, measured: tuple[dict, dict] | None) -> None:
    if measured is None:
        return
    before, limits = measured
    for name, difference in differences(before, probe(root)).items():
        if not difference <= limits[name]:
            raise ValueError(
                f"{type(root).__name__} computes something else after it was patched: the outputs for {name} differ by "
                f"{difference:.2g} of their norm, where roundings explain {limits[name]:.2g}. It is left as it was"
            )
