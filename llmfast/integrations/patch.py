"""Our kernels inside a model of Hugging Face transformers.

    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
    llmfast.patch(model)

Only this one object changes: its modules get a ``forward`` of their own, classes stay as they are, and ``unpatch``
restores everything. Parameters, names and saved files are untouched.

If another program builds the model, patch its class first: ``llmfast.patch(Qwen3ForCausalLM)`` patches
each that is built from then on, until ``llmfast.unpatch(Qwen3ForCausalLM)``.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.integrations.huggingface.families import FAMILIES
from llmfast.integrations.transformers_attention import NAME, attention_forward, register
from llmfast.kernels import layer_norm, linear_cross_entropy, lora_mlp, rms_norm, rope, swiglu
from llmfast.models.activations import of_module
from llmfast.models.adapters.layers import as_adapted, head_weight
from llmfast.models.adapters.lora import product_dtype

PREFIXES = [family.prefix for family in FAMILIES.values() if family.patched]
_RECORD = "_llmfast_patch"
_INIT = "_llmfast_init"  # of a class that is patched: its own __init__, or None if it had none


@dataclass
class _Record:
    """What ``unpatch`` restores."""

    forwards: list[tuple[nn.Module, Any]]
    """Modules, and the ``forward`` that each had as an instance attribute before, if any."""
    attention: list[tuple[Any, str]]
    """Configurations, and the attention implementation that each named before."""


def patch(
    model: nn.Module | type[nn.Module],
    *,
    norms: bool = True,
    activations: bool = True,
    attention: bool = True,
    loss: bool = True,
) -> nn.Module | type[nn.Module]:
    """Swap a transformers model's ops for the kernels of llmfast, in place; returns the model.

    Given a class, it changes the class itself: every model of it (and of classes derived from it) that is built from
    then on, by whoever, is patched as soon as it is built. Models built before stay as they are.

    Args:
        model: A causal language model of the families Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma2 or GPT-2, or
            anything that contains one (PEFT); or a class of such models.
        norms: rms_norm and layer_norm.
        activations: swiglu, geglu and gelu.
        attention: flash_attention, and rope for queries and keys.
        loss: linear_cross_entropy while training with ``labels``: the output then holds the loss, and None in place
            of logits, which are never formed.

    Raises:
        ValueError: the model holds nothing to patch, is patched already, or has an activation without a kernel.
    """
    if isinstance(model, type):
        parts = {"norms": norms, "activations": activations, "attention": attention, "loss": loss}
        return _patch_class(model, parts)
    if hasattr(model, _RECORD):
        raise ValueError("this model is patched already; llmfast.unpatch(model) takes it back")
    wanted = {"norm": norms, "activation": activations, "attention": attention, "loss": loss}
    found = [(module, *replacement) for module in model.modules() if (replacement := _replacement(type(module)))]
    if not found:
        raise _nothing_to_patch(type(model))
    forwards = [(module, make(module)) for module, part, make in found if wanted[part]]
    record = _Record([(module, module.__dict__.get("forward")) for module, _ in forwards], [])
    for module, forward in forwards:
        module.forward = types.MethodType(forward, module)
    if attention:
        register()
        record.attention += [(config, config._attn_implementation) for config in _own_configurations(model)]
        for config, _ in record.attention:
            config._attn_implementation = NAME
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
    record = getattr(model, _RECORD)
    for module, previous in record.forwards:
        del module.forward
        if previous is not None:
            module.forward = previous
    for config, name in record.attention:
        config._attn_implementation = name
    object.__delattr__(model, _RECORD)
    return model


def _patch_class(cls: type[nn.Module], parts: dict[str, bool]) -> type[nn.Module]:
    if _INIT in vars(cls):
        raise ValueError(f"{cls.__name__} is patched already; llmfast.unpatch({cls.__name__}) takes it back")
    if not issubclass(cls, nn.Module) or not any(map(_replacement, _defined_beside(cls))):
        raise _nothing_to_patch(cls)
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


def _defined_beside(cls: type) -> Iterator[type]:
    """The classes in the files of ``cls`` and those it is derived from: what its models are made of."""
    for base in cls.__mro__:
        for each in vars(sys.modules[base.__module__]).values():
            if isinstance(each, type) and each.__module__ == base.__module__:
                yield each


def _nothing_to_patch(cls: type) -> ValueError:
    return ValueError(f"{cls.__name__} holds nothing that llmfast can patch; supported are {', '.join(PREFIXES)}")


def _replacement(kind: type) -> tuple[str, Callable] | None:
    """What a module of this class is, and what makes its new forward; None for what is not ours to patch.

    The attention of GPT-2 keeps its forward, which calls the implementation that its configuration names.
    """
    found = "layer_norm" if kind is nn.LayerNorm else _KIND_OF_CLASS.get(kind.__name__)
    return REPLACEMENTS.get(found)


def _own_configurations(model: nn.Module) -> list[Any]:
    """The model's configurations, after it got copies of its own: another model may share the object."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        config = module.__dict__.get("config")
        if hasattr(config, "_attn_implementation"):
            module.config = copies.setdefault(id(config), copy.copy(config))
    return list(copies.values())


# --- norms ----------------------------------------------------------------------------------------------------------


def _rms_norm_forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, eps=self.variance_epsilon)


def _rms_norm_from_one_forward(self: nn.Module, x: Tensor) -> Tensor:
    """Gemma's, whose weight is what is added to one."""
    return rms_norm(x, self.weight, eps=self.eps, weight_offset=1.0)


def _layer_norm_forward(self: nn.Module, input: Tensor) -> Tensor:
    return layer_norm(input, self.weight, self.bias, eps=self.eps)


# --- activations ----------------------------------------------------------------------------------------------------


def _gated_mlp(module: nn.Module) -> Callable:
    return functools.partial(_gated_mlp_forward, _activation_of(module.act_fn, gated=True))


def _gelu_mlp(module: nn.Module) -> Callable:
    return functools.partial(_gelu_mlp_forward, _activation_of(module.act, gated=False))


def _activation_of(module: nn.Module, *, gated: bool) -> Callable[..., Tensor]:
    """The kernel that computes what the module does, with a gate or without."""
    activation = of_module(module, gated=gated)
    if activation is None:
        without = "" if gated else " without a gate"
        raise ValueError(
            f"there is no kernel for the activation {type(module).__name__}{without}: patch(model, activations=False)"
        )
    return activation.function()


def _gated_mlp_forward(activation: Callable[..., Tensor], self: nn.Module, x: Tensor) -> Tensor:
    if activation is swiglu:
        layers = [as_adapted(layer, x) for layer in (self.gate_proj, self.up_proj, self.down_proj)]
        if None not in layers and any(layer.lora_a is not None for layer in layers):
            return lora_mlp(x.to(product_dtype(x)), *layers)
    return self.down_proj(activation(self.gate_proj(x), self.up_proj(x)))


def _gelu_mlp_forward(activation: Callable[..., Tensor], self: nn.Module, hidden_states: Tensor) -> Tensor:
    return self.dropout(self.c_proj(activation(self.c_fc(hidden_states))))


# --- attention ------------------------------------------------------------------------------------------------------


def _attention_forward(
    self: nn.Module,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of Llama and its kin, from projection to projection."""
    B, S, _ = hidden_states.shape
    q, k, v = (each(hidden_states).view(B, S, -1, self.head_dim) for each in (self.q_proj, self.k_proj, self.v_proj))
    if hasattr(self, "q_norm"):
        q, k = self.q_norm(q), self.k_norm(k)
    q, k = _rotate(q, k, *position_embeddings)
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, self.layer_idx)
    options = {
        "dropout": self.attention_dropout if self.training else 0.0,
        "scaling": self.scaling,
        "sliding_window": _window(self),
        "softcap": getattr(self, "attn_logit_softcapping", None),
    }
    out, _ = attention_forward(self, q, k, v, attention_mask, **(kwargs | options))
    return self.o_proj(out.reshape(B, S, -1)), None


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q, k (B, S, heads, D) by cosines and sines (1 or B, S, D), each of which transformers holds twice in a row."""
    B, S = q.shape[:2]
    half = cos.shape[-1] // 2
    positions = None
    if cos.shape[0] > 1:  # rows at different positions (padding on the left, packing): a table of all of them
        positions = torch.arange(B * S, device=q.device).view(B, S)
    cos, sin = (each[..., :half].reshape(-1, half) for each in (cos, sin))
    return rope(q, k, positions=positions, cos=cos, sin=sin)


def _window(self: nn.Module) -> int | None:
    if hasattr(self, "sliding_window"):
        return self.sliding_window
    return self.config.sliding_window if self.config.model_type == "mistral" else None


# --- loss -----------------------------------------------------------------------------------------------------------


def _loss_forward(module: nn.Module) -> Callable:
    """The forward of the module's class, but in training with labels the loss straight from the hidden states."""
    original = type(module).forward

    @functools.wraps(original)  # Trainer reads the names of the arguments
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind_partial(self, *args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        labels, shifted = given.pop("labels", None), given.pop("shift_labels", None)
        if not self.training or (labels is None and shifted is None):
            return original(self, *args, **kwargs)
        del given["self"]
        given.pop("logits_to_keep", None)
        items, ignored = given.pop("num_items_in_batch", None), given.pop("ignore_index", -100)
        as_tuple = given.pop("return_dict", None) is False
        weight = head_weight(self.lm_head)
        if weight is None:  # adapters whose output is not one product
            return original(self, *args, **kwargs)
        outputs = getattr(self, self.base_model_prefix)(**given)
        hidden = outputs.last_hidden_state
        targets = F.pad(labels, (0, 1), value=ignored)[..., 1:] if shifted is None else shifted
        loss = linear_cross_entropy(
            hidden,
            weight,
            targets.reshape(hidden.shape[:-1]).to(hidden.device),
            self.lm_head.bias,
            ignore_index=ignored,
            softcap=getattr(self.config, "final_logit_softcapping", None),
            reduction="mean" if items is None else "sum",
        )
        if items is not None:
            loss = loss / (items.to(loss.device) if torch.is_tensor(items) else items)
        found = _output(loss, outputs)
        return found.to_tuple() if as_tuple else found

    return forward


def _output(loss: Tensor, outputs: Any) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return CausalLMOutputWithPast(
        loss=loss,
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


# The kinds of modules that the description of a family names: the part of ``patch`` that each belongs to, and what
# makes the new forward of a module.
REPLACEMENTS: dict[str, tuple[str, Callable[[nn.Module], Callable]]] = {
    "layer_norm": ("norm", lambda _: _layer_norm_forward),
    "rms_norm": ("norm", lambda _: _rms_norm_forward),
    "rms_norm_from_one": ("norm", lambda _: _rms_norm_from_one_forward),
    "gated_mlp": ("activation", _gated_mlp),
    "gelu_mlp": ("activation", _gelu_mlp),
    "attention": ("attention", lambda _: _attention_forward),
    "loss": ("loss", _loss_forward),
}
_KIND_OF_CLASS = {family.prefix + rest: kind for family in FAMILIES.values() for rest, kind in family.patched.items()}
