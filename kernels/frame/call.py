"""A call of an operator, described once, by a ``NamedTuple`` whose fields are the operator's arguments.

    class ScaleCall(NamedTuple):
        x: Tensor
        bias: Tensor | None
        factor: float

        def allocate(self) -> Tensor:
            return torch.empty_like(self.x)

The operator's schema follows from the annotations, ``(Tensor x, Tensor? bias, float factor) -> Tensor``, and its fake
function is ``allocate``. The last field of a call may itself be such a tuple, whose fields follow in the schema: this
is how a backward pass takes what its forward pass was called with, and how two operators share their options.
"""

import types
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

MUTATED = "mutated"  # an argument that the operator overwrites
MutatedTensor = Annotated[Tensor, MUTATED]
MutatedTensors = Annotated[list[Tensor], MUTATED]

# How the dispatcher names a type, and which types of values it passes on as they are, without a conversion.
_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    Tensor: ("Tensor", (Tensor, torch.nn.Parameter)),
    list[Tensor]: ("Tensor[]", (list,)),
    int: ("int", (int,)),
    float: ("float", (float,)),
    bool: ("bool", (bool,)),
    str: ("str", (str,)),
    torch.dtype: ("ScalarType", (torch.dtype,)),
    list[int]: ("int[]", (list,)),
    list[bool]: ("bool[]", (list,)),
}


class Field:
    """One argument of an operator."""

    def __init__(self, name: str, annotation: Any):
        self.name = name
        self.is_mutated = get_origin(annotation) is Annotated
        kind = get_args(annotation)[0] if self.is_mutated else annotation
        self.is_optional = get_origin(kind) in (Union, types.UnionType)
        if self.is_optional:
            (kind,) = (each for each in get_args(kind) if each is not type(None))
        self.is_tensor = kind is Tensor
        self._kind, accepted = _KINDS[kind]
        self.accepted = frozenset((*accepted, type(None)) if self.is_optional else accepted)

    def schema(self, alias: str) -> str:
        kind = self._kind
        if self.is_mutated:
            kind = kind.replace("Tensor", f"Tensor({alias}!)")
        return f"{kind}{'?' if self.is_optional else ''} {self.name}"


class Description:
    """What the annotations of a call say."""

    def __init__(self, call: type[Any]):
        hints = get_type_hints(call, include_extras=True)
        self.call = call
        *heads, last = hints.items()
        self.tail = Description(last[1]) if hasattr(last[1], "_fields") else None
        own = heads if self.tail else [*heads, last]
        self._own = len(own)
        self.fields: list[Field] = [Field(*each) for each in own] + (self.tail.fields if self.tail else [])
        self.is_mutable = any(field.is_mutated for field in self.fields)
        # Made once, since they take part in every call. ``tuple.__new__`` takes a third of the time of ``call(...)``.
        self.of_fields, self.flatten, self.build = self._wrapping(), self._flattening(), self._building()
        self.first_tensor = next((i for i, field in enumerate(self.fields) if field.is_tensor), 0)

    @property
    def arguments(self) -> str:
        """As a schema lists them."""
        aliases = iter("abcdefghijklmnopqrstuvwxyz")
        return ", ".join(field.schema(next(aliases) if field.is_mutated else "") for field in self.fields)

    @property
    def returns(self) -> str:
        """What ``allocate`` says it returns, as in a schema."""
        result = get_type_hints(self.call.allocate)["return"]
        if result is type(None):
            return "()"
        kinds = [_KINDS[kind][0] for kind in (get_args(result) or (result,))]
        return kinds[0] if result is Tensor else f"({', '.join(kinds)})"

    @property
    def leading_tensors(self) -> int:
        """How many tensors stand before the first option; they must be all that there are."""
        count = next((i for i, field in enumerate(self.fields) if not field.is_tensor), len(self.fields))
        assert not any(field.is_tensor for field in self.fields[count:]), f"{self.call}: tensors come first"
        return count

    def _wrapping(self) -> Callable[[tuple[Any, ...]], Any]:
        """From its fields, of which the last may be a plain tuple too, the call."""
        new: Callable[[tuple[Any, ...]], Any] = partial(tuple.__new__, self.call)
        if self.tail is None:
            return new
        wrap_tail = self.tail.of_fields
        return lambda fields: new((*fields[:-1], wrap_tail(fields[-1])))

    def _flattening(self) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        """From the fields of a call, the arguments of the operator."""
        if self.tail is None:
            return lambda fields: fields
        flatten_tail = self.tail.flatten if self.tail.tail else None
        if flatten_tail is None:
            return lambda fields: (*fields[:-1], *fields[-1])
        return lambda fields: (*fields[:-1], *flatten_tail(fields[-1]))

    def _building(self) -> Callable[[tuple[Any, ...]], Any]:
        """From the arguments of the operator, the call."""
        new, own = partial(tuple.__new__, self.call), self._own
        if self.tail is None:
            return new
        build_tail = self.tail.build
        return lambda arguments: new((*arguments[:own], build_tail(arguments[own:])))

    def accepts(self, kinds: Iterable[type]) -> bool:
        """Whether values of these types reach the operator as they are."""
        return all(kind in field.accepted for kind, field in zip(kinds, self.fields, strict=True))

    def mutated(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        """The tensors that are overwritten."""
        values = [value for value, field in zip(arguments, self.fields, strict=True) if field.is_mutated]
        return [each for value in values for each in (value if isinstance(value, list) else [value])]
