"""Which tokens count: those that are ignored take part in no matrix product, and so cost nothing."""

from collections.abc import Iterator

import torch
from torch import Tensor


def counted_first(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The indices of all tokens (N,), those that count first, and how many count, (1,) int32; on the device."""
    ignored = target == ignore_index
    order = torch.argsort(ignored.to(torch.uint8), stable=True)
    return order, (~ignored).sum(dtype=torch.int32).reshape(1)


class CountedTokens:
    """The tokens that count, for a host that launches work for these alone.

    Only the device knows how many there are. Making an instance sends that number on its way; ``chunks`` waits for
    it. What the caller launches between the two (the zeros that gradients are added to) keeps the device busy
    meanwhile. A CUDA graph under capture cannot wait: there every token is worked on, and ignored ones add zeros.

    Args:
        tokens: N, how many tokens there are.
        target: (N,), or None where all tokens count.
    """

    def __init__(self, tokens: int, target: Tensor | None, ignore_index: int):
        self._tokens, self._target, self._ignore_index = tokens, target, ignore_index
        self._count = self._arrived = None
        if target is None or (target.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        self._count = (target != ignore_index).sum().to("cpu", non_blocking=True)  # to pinned memory
        if target.is_cuda:
            self._arrived = torch.cuda.current_stream(target.device).record_event()

    def chunks(self, rows: int) -> Iterator[slice | Tensor]:
        """At most ``rows`` tokens at a time, first to last: slices where no token is ignored, and else indices."""
        if self._arrived is not None:
            self._arrived.synchronize()
        count = self._tokens if self._count is None else int(self._count)
        order = None
        if 0 < count < self._tokens:
            order, _ = counted_first(self._target, self._ignore_index)
        for start in range(0, count, rows):
            some = slice(start, min(start + rows, count))
            yield some if order is None else order[some]
