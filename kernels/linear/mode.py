"""Batch-invariant mode: a row's bits do not depend on who shares the batch."""

import threading
import weakref
from functools import lru_cache

from torch import Tensor, nn

from ..frame import invariance
from ..frame.invariance import is_batch_invariant as is_batch_invariant
from .api import linear

_lock = threading.Lock()
_holders: weakref.WeakKeyDictionary[nn.Linear, int] = weakref.WeakKeyDictionary()


@lru_cache
def _invariant_class(kind: type[nn.Linear]) -> type[nn.Linear]:
    """``kind`` with the forward pass of ``linear``. A layer changes its class, which ``torch.compile`` guards on."""

    class InvariantLinear(kind):
        original = kind

        def forward(self, input: Tensor) -> Tensor:
            return linear(input, self.weight, self.bias)

    InvariantLinear.__name__ = InvariantLinear.__qualname__ = f"Invariant{kind.__name__}"
    return InvariantLinear


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Those that compute what ``torch.nn.Linear`` does."""
    forwards = (nn.Linear.forward, *(layer.forward for layer in map(type, _holders)))
    return [m for m in model.modules() if isinstance(m, nn.Linear) and type(m).forward in forwards]


class batch_invariant:
    """For a ``with`` block: results for a row (a token, a sequence) have the same bits in every batch.

    A BLAS library, split attention and a launch that depends on the batch change the order of sums, so that what a
    request is answered depends on who else asks, and a rollout's log-probabilities are not those that the trainer
    computes of it (He et al. 2025, "Defeating Nondeterminism in LLM Inference"). In this mode

    - ``rms_norm``, ``layer_norm``, ``swiglu``, ``geglu``, ``gelu``, ``rope``, ``cross_entropy`` and
      ``linear_cross_entropy`` (of each token, ``reduction="none"``) compute a row from that row alone;
    - ``flash_attention`` walks over the keys in one order, from the first to the last, in one tile for any number of
      queries: a token that is decoded step by step has the bits that it has when the whole sequence is read at once.
      ``flash_decode`` does not split the cache, and its rows have the same bits in every batch; on a GPU they are not
      those of ``flash_attention``, whose tiles are larger;
    - ``nf4_linear``, ``int8_linear`` and their adapters decode the weight and take ``linear``;
    - the ``torch.nn.Linear`` layers of ``models`` take ``linear``. Other products (``torch.matmul``) are the caller's.

    Gradients are as exact as ever, but may depend on the batch in their last bits. The mode is of the process, since
    backward passes and recomputed activations run in threads of their own; threads may enter and leave it at any time,
    and it is off when the last has left. ``torch.compile`` compiles again for it; enter it outside of what is compiled.

    What it costs: products run at the speed of ``linear``; decoding long contexts is not split over the chip, and one
    query takes the tile of 128. It is made for comparing and for on-policy training, not for the fastest generation.

    Args:
        models: whose linear layers take part. Layers of subclasses with a ``forward`` of their own are left alone.

    Example::

        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
        x = torch.randn(5, 64)
        with batch_invariant(model):
            assert torch.equal(model(x)[2:3], model(x[2:3]))
    """

    def __init__(self, *models: nn.Module):
        for model in models:
            if not isinstance(model, nn.Module):
                raise ValueError(f"batch_invariant takes torch.nn.Modules, got {type(model).__name__}")
        self._models = models
        self._entered: list[list[nn.Linear]] = []

    def __enter__(self) -> "batch_invariant":
        with _lock:
            layers = list(dict.fromkeys(layer for model in self._models for layer in _linear_layers(model)))
            for layer in layers:
                if layer not in _holders:
                    layer.__class__ = _invariant_class(type(layer))
                _holders[layer] = _holders.get(layer, 0) + 1
            self._entered.append(layers)
        invariance.hold(1)
        return self

    def __exit__(self, *_: object) -> None:
        invariance.hold(-1)
        with _lock:
            for layer in self._entered.pop():
                _holders[layer] -= 1
                if not _holders[layer]:
                    del _holders[layer]
                    layer.__class__ = layer.original
