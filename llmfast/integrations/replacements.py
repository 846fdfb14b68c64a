"""The forward methods that ``llmfast.patch`` gives to modules of transformers, by the kind of module."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.integrations.transformers_attention import attention_forward
from llmfast.kernels import layer_norm, linear_cross_entropy, lora_mlp, rms_norm, rope, swiglu
from llmfast.models.activations import of_module
from llmfast.models.adapters.layers import Adapted, as_adapted, head_weight
from llmfast.models.adapters.lora import product_dtype

# --- norms ----------------------------------------------------------------------------------------------------------


def _rms_norm(module: nn.Module) -> Callable:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return functools.partial(_rms_norm_forward, eps, 0.0)


def _rms_norm_from_one(module: nn.Module) -> Callable:
    """Gemma's, whose weight is what is added to one."""
    return functools.partial(_rms_norm_forward, module.eps, 1.0)


def _rms_norm_forward(eps: float, offset: float, self: nn.Module, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, eps=eps, weight_offset=offset)


def _layer_norm(module: nn.Module) -> Callable | None:
    """LayerNorm over the last dimension, with a scale."""
    has_one_dimension = len(module.normalized_shape) == 1
    return _layer_norm_forward if has_one_dimension and module.weight is not None else None


def _layer_norm_forward(self: nn.Module, input: Tensor) -> Tensor:
    return layer_norm(input, self.weight, self.bias, eps=self.eps)


def _layer_norm_without_bias(module: nn.Module) -> Callable | None:
    """Cohere's; that of queries and keys has a scale for each head, for which there is no kernel."""
    return _layer_norm_without_bias_forward if module.weight.dim() == 1 else None


def _layer_norm_without_bias_forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return layer_norm(hidden_states, self.weight, eps=self.variance_epsilon)


# --- activations ----------------------------------------------------------------------------------------------------


def _gated_mlp(module: nn.Module) -> Callable:
    activation = module.act_fn if hasattr(module, "act_fn") else module.activation_fn
    return functools.partial(_gated_mlp_forward, _activation_of(activation, gated=True))


def _packed_mlp(module: nn.Module) -> Callable:
    """Phi-3's, whose gate and up are one layer."""
    return functools.partial(_packed_mlp_forward, _activation_of(module.activation_fn, gated=True))


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


def _packed_mlp_forward(activation: Callable[..., Tensor], self: nn.Module, hidden_states: Tensor) -> Tensor:
    return self.down_proj(activation(self.gate_up_proj(hidden_states)))


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
) -> tuple[Tensor, Tensor | None]:
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
        "softcap": getattr(self, "attn_logit_softcapping", None),
    }
    out, weights = attention_forward(self, q, k, v, attention_mask, **(kwargs | options))
    return self.o_proj(out.reshape(B, S, -1)), weights


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q, k (B, S, heads, D) by cosines and sines (1 or B, S, D), each of which transformers holds twice in a row."""
    B, S = q.shape[:2]
    half = cos.shape[-1] // 2
    positions = None
    if cos.shape[0] > 1:  # rows at different positions (padding on the left, packing): a table of all of them
        positions = torch.arange(B * S, device=q.device).view(B, S)
    cos, sin = (each[..., :half].reshape(-1, half) for each in (cos, sin))
    return rope(q, k, positions=positions, cos=cos, sin=sin)


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
        if reason := _why_not_fused(self, given):
            _say_once(reason)
            return original(self, *args, **kwargs)
        del given["self"]
        given.pop("logits_to_keep", None)
        items, ignored = given.pop("num_items_in_batch", None), given.pop("ignore_index", -100)
        as_tuple = given.pop("return_dict", None) is False
        outputs = _decoder(self)(**given)
        hidden = outputs.last_hidden_state
        targets = F.pad(labels, (0, 1), value=ignored)[..., 1:] if shifted is None else shifted
        loss = linear_cross_entropy(
            hidden * scale if (scale := _logit_scale(self)) != 1 else hidden,
            head_weight(self.lm_head),
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


def _decoder(model: nn.Module) -> nn.Module:
    """The model below the head. (Llama 4's has the name of the whole in models of images.)"""
    return getattr(model, model.base_model_prefix) if hasattr(model, model.base_model_prefix) else model.model


def _why_not_fused(model: nn.Module, given: dict[str, Any]) -> str:
    """Why the loss of a model is not one product and its cross entropy; empty where it is."""
    from transformers.loss.loss_utils import LOSS_MAPPING

    head = model.lm_head
    is_plain = type(head) is nn.Linear and "forward" not in head.__dict__
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    if not (is_plain or isinstance(head, Adapted)) or any(hooks) or head_weight(head) is None:
        return f"the head is more than a linear layer ({type(head).__name__})"
    if _logit_scale(model) != 1 and head.bias is not None:
        return "the logits are scaled and have a bias"
    if model.loss_function is not LOSS_MAPPING["ForCausalLM"]:
        return "the model has another loss than that of causal language models"
    routed = given.get("output_router_logits")
    if routed or (routed is None and getattr(model.config, "output_router_logits", False)):
        return "the loss has a part for the router of experts"
    return ""


def _logit_scale(model: nn.Module) -> float:
    """What the model multiplies its logits by (Granite, Cohere)."""
    return getattr(model, "logit_scale", None) or 1 / getattr(model.config, "logits_scaling", 1)


_said: set[str] = set()


def _say_once(reason: str) -> None:
    if reason not in _said and not torch.compiler.is_compiling():
        _said.add(reason)
        warnings.warn(f"llmfast.patch leaves the loss to the model: {reason}", stacklevel=3)


def _output(loss: Tensor, outputs: Any) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return CausalLMOutputWithPast(
        loss=loss,
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


# The kinds of modules that the description of a family names: the part of ``patch`` that each belongs to, and what
# makes the new forward of a module, or None where it keeps its own.
REPLACEMENTS: dict[str | None, tuple[str, Callable[[nn.Module], Callable | None]]] = {
    "layer_norm": ("norm", _layer_norm),
    "layer_norm_without_bias": ("norm", _layer_norm_without_bias),
    "rms_norm": ("norm", _rms_norm),
    "rms_norm_from_one": ("norm", _rms_norm_from_one),
    "gated_mlp": ("activation", _gated_mlp),
    "packed_mlp": ("activation", _packed_mlp),
    "gelu_mlp": ("activation", _gelu_mlp),
    "attention": ("attention", lambda _: _attention_forward),
    "loss": ("loss", _loss_forward),
}
