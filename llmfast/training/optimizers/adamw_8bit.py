"""AdamW with 8-bit moments on Triton kernels, interchangeable with bitsandbytes'."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from llmfast.kernels import adamw_, adamw_8bit_
from llmfast.kernels.optimizers.adamw_ops import code_tables
from llmfast.kernels.optimizers.adamw_reference import BLOCK, decode, encode
from llmfast.training.distribution.sharding import first_row, local, placed
from llmfast.training.optimizers.adamw import (
    Rounding,
    add_master,
    alike,
    as_step,
    call,
    check_rounding,
    gradient_scale,
    saved_states,
    update_settings,
    wide_copy,
)

WRAPPED = "__bnb_optimizer_quant_state__"  # where bitsandbytes' state_dict hides what FSDP should not gather
CODES, MAXIMA, TABLES = ("state1", "state2"), ("absmax1", "absmax2"), ("qmap1", "qmap2")


class AdamW8bit(torch.optim.Optimizer):
    """AdamW whose moments take 2 bytes a parameter in place of 8 (Dettmers et al. 2022, arXiv:2110.02861).

    Names and values of the state are those of ``bitsandbytes.optim.AdamW8bit``, and either loads what the other saved.
    Small parameters, which hold little memory and much of what is delicate, keep float32 moments.

    Of parameters that FSDP2 divides (DTensors), each process codes the moments of its own part, in blocks of that part;
    where parts are multiples of 256 elements, as most are, these are the blocks of the whole. Other numbers of
    processes have other blocks: ``state_dict`` gives such moments as numbers, in float32, divided as the parameter is,
    and ``load_state_dict`` codes them again, which on the same parts gives the same codes.

    Args:
        params: tensors, or groups of them as for any ``torch.optim.Optimizer``.
        lr, betas, eps, weight_decay, rounding, seed, clip_norm: as for ``llmfast.training.optimizers.adamw.AdamW``.
        min_8bit_size: parameters of fewer elements have float32 moments.

    Raises:
        ValueError: a setting out of its range.

    Example::

        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(64, 64))
        >>> optimizer = AdamW8bit([weight], lr=0.1)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> bool((weight < 1).all()), optimizer.state[weight]["state1"].dtype
        (True, torch.uint8)
    """

    _step_supports_amp_scaling = True  # torch.amp.GradScaler leaves the unscaling to ``step``

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        min_8bit_size: int = 4096,
        rounding: Rounding = "stochastic",
        seed: int = 0,
        clip_norm: float | None = None,
    ):
        check_rounding(rounding)
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.min_8bit_size = min_8bit_size
        self.rounding, self.seed, self.clip_norm = rounding, seed, clip_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient; returns what ``closure`` does."""
        loss = call(closure)
        scale, found_inf = gradient_scale(self)
        stream = 0
        for group, parameters in alike(self):
            states = {parameter: self._state_of(parameter) for parameter in parameters}
            for update, names, dtype in (
                (adamw_8bit_, (*CODES, *MAXIMA), torch.uint8),
                (adamw_, CODES, torch.float32),
            ):
                chosen = [parameter for parameter in parameters if states[parameter]["state1"].dtype == dtype]
                if not chosen:
                    continue
                masters = [local(states[parameter]["master"]) for parameter in chosen if "master" in states[parameter]]
                update(
                    [local(parameter) for parameter in chosen],
                    [local(parameter.grad) for parameter in chosen],
                    *([local(states[parameter][name]) for parameter in chosen] for name in (*names, "step")),
                    **update_settings(self, group, chosen[0].dtype, stream),
                    masters=masters or None,
                    scale=scale,
                    found_inf=found_inf,
                )
                stream += 1
        return loss

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            coded = self._is_coded(parameter)
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for name in CODES:
                state[name] = torch.zeros_like(parameter, dtype=torch.uint8 if coded else torch.float32)
            if coded:
                blocks = -(-local(parameter).numel() // BLOCK)
                for name in MAXIMA:
                    state[name] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
        add_master(state, parameter, self.rounding)
        return state

    def _is_coded(self, parameter: Tensor) -> bool:
        return parameter.numel() >= self.min_8bit_size

    def put(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        """Set the state of a parameter; moments given as numbers are coded where they are to be."""
        if self._is_coded(parameter) and state["state1"].dtype != torch.uint8:
            state = with_codes(state)
        self.state[parameter] = state

    def state_dict(self) -> dict:
        """As ``bitsandbytes.optim.AdamW8bit`` saves it: steps as numbers (which waits for the device), and with codes
        their tables."""
        saved = super().state_dict()
        saved["state"] = {number: self._as_saved(state) for number, state in saved["state"].items()}
        return saved

    def _as_saved(self, state: dict[str, Tensor]) -> dict:
        if isinstance(state["state1"], DTensor):
            state = with_numbers(state)
        state = {**state, "step": int(state["step"].item())}
        if state["state1"].dtype == torch.uint8:
            state |= zip(TABLES, code_tables(state["state1"].device), strict=True)
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what this or ``bitsandbytes.optim.AdamW8bit`` saved.

        Raises:
            ValueError: groups that do not fit the parameters, codes of another table, or another optimizer's state.
        """
        groups = [{"lr": 0.0, **group} for group in state_dict["param_groups"]]
        super().load_state_dict({"state": {}, "param_groups": groups})
        self.state.clear()
        for parameter, saved in saved_states(self, state_dict):
            saved = {**saved, **saved.get(WRAPPED, {})}
            if CODES[0] not in saved:
                raise ValueError(f"the state has {', '.join(saved)} and is not an AdamW8bit state: load it into AdamW")
            state = {"step": as_step(saved["step"], parameter)}
            if "master" in saved:
                state["master"] = wide_copy(saved["master"], parameter)
            if saved["state1"].dtype != torch.uint8:
                self.put(parameter, state | {name: wide_copy(saved[name], parameter) for name in CODES})
                continue
            for name, table in zip(TABLES, code_tables(saved[TABLES[0]].device), strict=True):
                if not torch.equal(saved[name].float(), table):
                    raise ValueError(f"{name} is not bitsandbytes' dynamic map: these codes mean other numbers")
            for name in CODES:
                state[name] = torch.empty_like(parameter, dtype=torch.uint8, requires_grad=False).copy_(saved[name])
            for name in MAXIMA:
                state[name] = saved[name].to(parameter.device, torch.float32, copy=True)
            self.state[parameter] = state


# --- moments as numbers: what is saved where blocks depend on the number of processes ------------------------------


def with_numbers(state: dict[str, Tensor], *, whole_maxima: bool = False) -> dict[str, Tensor]:
    """A parameter's state with float32 moments instead of codes.

    With ``whole_maxima``, maxima are those of blocks of the whole, also where a DTensor has codes of a part.
    """
    if MAXIMA[0] not in state:
        return state
    numbers = {name: entry for name, entry in state.items() if name not in (*CODES, *MAXIMA)}
    for code, maximum, table in zip(CODES, MAXIMA, code_tables(state["state1"].device), strict=True):
        part, largest = local(state[code]), state[maximum].to(state[code].device)
        if whole_maxima:
            values = _decode_from(_first_element(state[code]), part.flatten(), largest, table)
        else:
            values = _decode_recodable(part.flatten(), largest, table)
        numbers[code] = placed(values.view(part.shape), state[code])
    return numbers


def _first_element(codes: Tensor) -> int:
    """The index, in the whole parameter, of the first element that this process holds."""
    part = local(codes)
    return first_row(codes) * part[0].numel() if part.numel() else 0


def _decode_from(start: int, codes: Tensor, largest: Tensor, table: Tensor) -> Tensor:
    """Decode the codes of elements from ``start`` on; ``largest`` are the maxima of all blocks of the parameter."""
    before = codes.new_zeros(start % BLOCK)  # in the block of the first
    return decode(torch.cat([before, codes]), largest[start // BLOCK :], table)[len(before) :]


def _decode_recodable(codes: Tensor, largest: Tensor, table: Tensor) -> Tensor:
    """Decode so that coding again gives the same codes and maxima.

    There is a code for +1 but none for -1: a block whose largest magnitude is negative would decode to one a little
    smaller. Its lowest code counts as what it was made of, -1.
    """
    values = decode(codes, largest, table)
    rows = torch.nn.functional.pad(codes, (0, -len(codes) % BLOCK), value=127).view(-1, BLOCK)
    negative = ((rows != 255).all(1) & (largest > 0)).nonzero()[:, 0]
    values[negative * BLOCK + rows[negative].argmin(1)] = -largest[negative]
    return values


def with_codes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``with_numbers``, in blocks of this process's part."""
    coded = dict(state)
    for code, maximum, table in zip(CODES, MAXIMA, code_tables(state["state1"].device), strict=True):
        part = local(state[code])
        codes, coded[maximum] = encode(part.flatten(), table)
        coded[code] = placed(codes.view(part.shape), state[code])
    return coded
