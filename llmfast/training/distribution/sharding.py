"""How a tensor is divided between processes, and whole matrices in turn for work that needs all of one.

FSDP2 divides a parameter by rows, tensor parallel by the rows or columns of some heads or hidden units: both are a
``Sharding``, and so is the one inside the other. The exchange gives each process every n-th of a list of matrices, so
that the work on them is divided too.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard


@dataclass(frozen=True)
class Sharding:
    """Which part of a tensor each process of a group has."""

    cuts: list[dict[int, Tensor]]
    """For each process, the indices that it holds along each divided dimension."""
    group: dist.ProcessGroup
    device: torch.device
    """Where the group exchanges tensors; parts may be kept elsewhere (CPU offload)."""

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def count(self) -> int:
        return len(self.cuts)

    @functools.cached_property
    def sizes(self) -> dict[int, int]:
        """The whole size of each divided dimension."""
        return {dim: 1 + max(int(cut[dim].max()) for cut in self.cuts if len(cut[dim])) for dim in self.cuts[0]}

    def part(self, whole: Tensor, rank: int | None = None) -> Tensor:
        """The part of ``whole`` that a process holds; this process if ``rank`` is left out."""
        for dim, places in self.cuts[self.rank if rank is None else rank].items():
            whole = whole.index_select(dim, places.to(whole.device))
        return whole

    def join(self, parts: list[Tensor]) -> Tensor:
        """Gathers the parts of all processes into the whole tensor."""
        whole = parts[0].new_empty(self.whole_shape(parts[0]))
        for cut, part in zip(self.cuts, parts, strict=True):
            places = [cut.get(dim, torch.arange(size)).to(whole.device) for dim, size in enumerate(whole.shape)]
            whole[torch.meshgrid(*places, indexing="ij")] = part
        return whole

    def whole_shape(self, part: Tensor) -> torch.Size:
        return self._shape(part, self.sizes)

    def part_shape(self, part: Tensor, rank: int) -> torch.Size:
        """The shape of a process's part, from that of any."""
        return self._shape(part, {dim: len(places) for dim, places in self.cuts[rank].items()})

    def _shape(self, part: Tensor, sizes: dict[int, int]) -> torch.Size:
        return torch.Size(sizes.get(dim, size) for dim, size in enumerate(part.shape))

    def around(self, inner: Sharding, group: dist.ProcessGroup) -> Sharding:
        """This sharding, of which every part is divided further as ``inner`` says.

        Args:
            inner: of this process's part; those of the others are of the same shape.
            group: the processes of both, those that share a part of this sharding ``count`` apart.
        """
        cuts = [_cut_again(own, further) for further in inner.cuts for own in self.cuts]
        return Sharding(cuts, group, self.device)


def _cut_again(cut: dict[int, Tensor], further: dict[int, Tensor]) -> dict[int, Tensor]:
    return cut | {dim: cut[dim][places] if dim in cut else places for dim, places in further.items()}


def sharding_of(tensor: Tensor) -> Sharding | None:
    """How FSDP2 divides ``tensor`` (by rows, in equal parts but for the last); None if it does not."""
    if not isinstance(tensor, DTensor):
        return None
    shards = [place for place, how in enumerate(tensor.placements) if isinstance(how, Shard)]
    if not shards:
        return None
    (place,) = shards
    mesh, dim = tensor.device_mesh, tensor.placements[place].dim
    count, size = mesh.size(place), tensor.shape[dim]
    each = -(-size // count)
    cuts = [{dim: torch.arange(min(rank * each, size), min((rank + 1) * each, size))} for rank in range(count)]
    return Sharding(cuts, mesh.get_group(place), torch.device(mesh.device_type))


def first_row(tensor: Tensor) -> int:
    """Which row of a tensor that is divided by rows, perhaps twice, is the first that this process holds."""
    if not isinstance(tensor, DTensor):
        return 0
    mesh, start, rows = tensor.device_mesh, 0, len(tensor)
    for place in reversed(range(mesh.ndim)):  # FSDP2, which comes first, divides further what others have divided
        if not isinstance(tensor.placements[place], Replicate):
            each = -(-rows // mesh.size(place))
            start += mesh.get_local_rank(place) * each
            rows = min(each, max(0, rows - mesh.get_local_rank(place) * each))
    return start


def local(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed(part: Tensor, like: Tensor) -> Tensor:
    """``part`` as this process's part of a DTensor, if ``like`` is one."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
    )


def norm(tensors: list[Tensor], device: torch.device) -> Tensor:
    """The norm of all numbers in ``tensors``, in those of all processes where they are divided; copies count once.

    Raises:
        ValueError: a DTensor is a sum of which each process has one term, whose norm is not that of its parts.
    """
    lists = defaultdict(list)
    for tensor in tensors:
        lists[(tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None].append(tensor)
    totals = [_norm_of_alike(alike, device) for alike in lists.values()] or [torch.zeros((), device=device)]
    return totals[0] if len(totals) == 1 else torch.nn.utils.get_total_norm(totals).to(device)


def _norm_of_alike(tensors: list[Tensor], device: torch.device) -> Tensor:
    """That of tensors that are divided alike, in one sum over the processes of each dimension."""
    own = torch.nn.utils.get_total_norm([local(tensor) for tensor in tensors]).to(device)
    if not isinstance(tensors[0], DTensor):
        return own
    squares = own.double().square()  # whose range holds the squares of all that float32 does
    for place, how in enumerate(tensors[0].placements):
        if how.is_partial():
            raise ValueError(
                f"a tensor with placements {tensors[0].placements} is not summed yet: redistribute it first"
            )
        if not isinstance(how, Replicate):
            dist.all_reduce(squares, group=tensors[0].device_mesh.get_group(place))
    return squares.sqrt().to(own.dtype)


def gather_in_turn(parts: list[Tensor], shardings: list[Sharding]) -> list[Tensor]:
    """Gather matrices from the parts that n processes hold: each gets matrices rank, rank + n, rank + 2n, ... whole.

    All processes of the one group that the shardings share must call it, with the same matrices.
    """
    rank, count = shardings[0].rank, shardings[0].count
    mine = range(rank, len(parts), count)
    sent = [parts[to::count] for to in range(count)]
    wanted = [[shardings[i].part_shape(parts[i], sender) for i in mine] for sender in range(count)]
    received = _exchange(sent, wanted, shardings[0], parts[0].dtype)
    return [shardings[i].join(list(pieces)) for i, pieces in zip(mine, zip(*received, strict=True), strict=True)]


def scatter_in_turn(wholes: list[Tensor], like: list[Tensor], shardings: list[Sharding]) -> list[Tensor]:
    """The inverse of ``gather_in_turn``: this process's part of each matrix, shaped as its tensor in ``like``."""
    rank, count = shardings[0].rank, shardings[0].count
    mine = shardings[rank::count]
    sent = [[sharding.part(whole, to) for whole, sharding in zip(wholes, mine, strict=True)] for to in range(count)]
    wanted = [[part.shape for part in like[sender::count]] for sender in range(count)]
    received = _exchange(sent, wanted, shardings[0], like[0].dtype)
    return [received[i % count][i // count].to(part.device) for i, part in enumerate(like)]


def _exchange(
    sent: list[list[Tensor]],
    wanted: list[list[torch.Size]],
    sharding: Sharding,
    dtype: torch.dtype,
) -> list[list[Tensor]]:
    """Send ``sent[r]`` to process r and receive tensors of shapes ``wanted[r]`` from it, in one message each way."""
    flat = [tensor.reshape(-1).to(sharding.device, dtype) for tensors in sent for tensor in tensors]
    message = torch.cat([torch.empty(0, device=sharding.device, dtype=dtype), *flat])
    sizes = [sum(shape.numel() for shape in shapes) for shapes in wanted]
    answer = message.new_empty(sum(sizes))
    dist.all_to_all_single(
        answer, message, sizes, [sum(t.numel() for t in tensors) for tensors in sent], group=sharding.group
    )
    return [
        [piece.view(shape) for piece, shape in zip(block.split([s.numel() for s in shapes]), shapes, strict=True)]
        for block, shapes in zip(answer.split(sizes), wanted, strict=True)
    ]
