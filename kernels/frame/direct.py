"""Launches a kernel that Triton has compiled before, without Triton's search for it.

In every launch Triton describes each argument, turns the description and the options into text, and looks the compiled
kernel up by it: 8 to 39 µs of the host. Here a function that is generated for a kernel and the types of its arguments
makes a tuple of what a compiled kernel depends on:

- of a tensor the dtype, and whether its memory starts on 16 bytes,
- of a whole number that Triton specializes, whether it is 1 or a multiple of 16; of one without an annotation, the bits
  that it needs,
- of a constant the value, and of every argument the type, so that None is one.

The first launch of each tuple is Triton's own and returns the compiled kernel. Launches for which this may not be all
are always Triton's own: those of other kinds of kernels (``is_known``), with values of other types (``_describer``),
and while something watches or changes launches (``is_watched``).
"""

from collections.abc import Callable
from typing import Any

import torch

from ._triton import HAS_TRITON, triton

if HAS_TRITON:
    from triton import knobs
    from triton.compiler import CompiledKernel
    from triton.runtime.jit import JITFunction
    from triton.tools.tensor_descriptor import TensorDescriptor
else:
    knobs = CompiledKernel = JITFunction = TensorDescriptor = None

Describe = Callable[[tuple[Any, ...]], tuple[Any, ...]]
Pick = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], tuple[Any, ...]]]
# What describes the values of a launch whose arguments have certain types, and what was compiled for each description.
Form = tuple[Describe, dict[tuple, tuple]]
# What gives a compiled kernel to the driver, the kernel, and what Triton knows of it.
Compiled = tuple[Callable[..., None], Any, Any]
# What picks the values of a launch whose arguments are passed in some way, and the forms of such launches by types.
Call = tuple[Pick, dict[tuple, Form]]

NoneType = type(None)
TENSORS = (torch.Tensor, torch.nn.Parameter)
# Not float: 0.0 and -0.0 are equal, but other kernels.
CONSTANTS = (int, bool, str, NoneType)
# In place of the form of arguments among which are tuples: it is found by the types of their elements.
BY_ELEMENT: Any = object()
# In place of the form of arguments among which one is of a type that is not known: such launches are Triton's own.
TRITONS: Any = object()


class Direct:
    """The launches of one kernel."""

    def __init__(self, kernel: Any):
        self.kernel = kernel
        self.calls: dict[tuple[Any, ...], Call] = {}
        self.describers: dict[tuple, Describe | None] = {}  # by the types of all or the first arguments

    def launch(self, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> Compiled | None:
        """What ``kernel[grid](*args, **options)`` does; what it launched, unless Triton keeps that to itself."""
        pick, forms = self.call(args, options)
        values, settings = pick(args, options)
        types = tuple(map(type, values))
        form = forms.get(types) or self.add_form(forms, types)
        if form is BY_ELEMENT:
            types = tuple([(tuple, *map(type, each)) if type(each) is tuple else type(each) for each in values])
            form = forms.get(types) or self.add_form(forms, types)
        if form is TRITONS or is_watched(self.kernel):
            self.kernel[grid](*args, **options)
            return None
        describe, compiled = form
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        key = driver, device, settings, describe(values)
        found = compiled.get(key)
        if found is None:
            kernel = self.kernel.run(*args, grid=grid, warmup=False, **options)
            if type(kernel) is CompiledKernel:  # Not None or a promise, where a hook or a mode of Triton's compiles.
                found = compiled[key] = kernel.run, kernel.function, kernel.packed_metadata
            return found
        run, function, metadata = found
        x, y, z = in_three(grid)
        run(x, y, z, driver.get_current_stream(device), function, metadata, None, None, None, *values)
        return found

    def call(self, args: tuple[Any, ...], options: dict[str, Any]) -> Call:
        names = (len(args), *options)
        call = self.calls.get(names)
        if call is None:
            call = self.calls[names] = _picker(self.kernel.params, names), {}
        return call

    def add_form(self, forms: dict[tuple, Form], types: tuple) -> Form:
        form = forms[types] = BY_ELEMENT if tuple in types else self.form(types)
        return form

    def form(self, types: tuple) -> Form:
        """Of all arguments, or of the first ones."""
        if types not in self.describers:  # Generating one takes 150 µs.
            self.describers[types] = _describer(self.kernel.params[: len(types)], types)
        describe = self.describers[types]
        return TRITONS if describe is None else (describe, {})


class Prepared:
    """The launches ``kernel[grid](*tensors, *numbers, **options)`` of which only the tensors differ, the kernel's first
    parameters: descriptions of the others are left out of the key."""

    def __init__(self, kernel: Any, grid: tuple[int, ...], numbers: tuple[Any, ...], options: dict[str, Any]):
        self.kernel, self.grid, self.numbers, self.options = kernel, grid, numbers, options
        self.direct = _direct(kernel)
        self.programs = in_three(grid)
        self.forms: dict[tuple, Form] = {}
        self.values: tuple[Any, ...] | None = None  # of the other parameters, in their order

    def launch(self, tensors: tuple[Any, ...]) -> None:
        if self.direct is None:
            self.kernel[self.grid](*tensors, *self.numbers, **self.options)
            return
        types = tuple(map(type, tensors))
        form = self.forms.get(types)
        if form is None:
            form = self.forms[types] = self.direct.form(types)
        if form is TRITONS or is_watched(self.kernel):
            self.direct.launch(self.grid, (*tensors, *self.numbers), self.options)
            return
        describe, compiled = form
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        key = driver, device, describe(tensors)
        found = compiled.get(key)
        if found is None:
            args = (*tensors, *self.numbers)
            pick, _ = self.direct.call(args, self.options)
            self.values = pick(args, self.options)[0][len(tensors) :]
            found = self.direct.launch(self.grid, args, self.options)
            if found is not None:
                compiled[key] = found
            return
        run, function, metadata = found
        stream = driver.get_current_stream(device)
        run(*self.programs, stream, function, metadata, None, None, None, *tensors, *self.values)


def in_three(grid: tuple[int, ...]) -> tuple[int, int, int]:
    return grid if len(grid) == 3 else (*grid, 1, 1)[:3]


def is_watched(kernel: Any) -> bool:
    """Whether something asks Triton about each of its launches, or changes what they compile."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(
        (enter is not None and getattr(enter, "calls", True))
        or (leave is not None and getattr(leave, "calls", True))
        or kernel.pre_run_hooks
        or runtime.debug
        or kernel.debug
        or runtime.add_stages_inspection_hook
        or knobs.compilation.instrumentation_mode
    )


# ------------------------------------------------------------------------------------------------ generated functions


def _picker(params: list[Any], names: tuple[Any, ...]) -> Pick:
    """What picks, from so many arguments by position and options of these names, the values in the order of the
    parameters, and the options that are no parameters. (A call of a function with forty keywords takes 4 µs longer.)"""
    by_position, *by_name = names
    defaults, values = {}, []
    for i, param in enumerate(params[by_position:]):
        if param.name in by_name:
            values.append(f"options[{param.name!r}]")
        else:
            defaults[f"default_{i}"] = param.default  # Without one, Triton's launch, which is the first, says so.
            values.append(f"default_{i}")
    own = {param.name for param in params}
    settings = [f"options[{name!r}]" for name in by_name if name not in own]
    picked = [f"({''.join(f'{each}, ' for each in part)})" for part in (["*args", *values], settings)]
    return eval(f"lambda args, options: ({', '.join(picked)})", defaults)


def _describer(params: list[Any], types: tuple) -> Describe | None:
    """What describes values of these types; None if of one it is not known what a compiled kernel depends on."""
    parts, pointers = [], []
    for i, (param, kind) in enumerate(zip(params, types, strict=True)):
        if param.is_constexpr:
            if kind not in CONSTANTS:
                return None
            parts.append(f"v[{i}]")
        elif type(kind) is tuple:
            if param.annotation:
                return None
            elements = [_describe_value(f"v[{i}][{j}]", each, True, True, True) for j, each in enumerate(kind[1:])]
            if None in elements:
                return None
            for found, pointer in elements:
                parts += found
                pointers += pointer
        else:
            specialized = not param.do_not_specialize
            aligned = specialized and not param.do_not_specialize_on_alignment
            found = _describe_value(f"v[{i}]", kind, specialized, aligned, not param.annotation_type)
            if found is None or (kind is NoneType and param.annotation):
                return None
            parts += found[0]
            pointers += found[1]
    if pointers:
        each = ", ".join(f"{pointer} & 15 == 0" for pointer in pointers)
        parts.append(f"({' | '.join(pointers)}) & 15 and ({each},)")
    return eval(f"lambda v: ({''.join(f'{part}, ' for part in parts)})")


def _describe_value(
    value: str, kind: type, specialized: bool, aligned: bool, typed_by_value: bool
) -> tuple[list[str], list[str]] | None:
    """The expressions of what a kernel depends on in a value, and of the addresses whose alignment it depends on."""
    if kind in (NoneType, bool, float):
        return [], []
    if kind in TENSORS:
        return [f"{value}.dtype"], [f"{value}.data_ptr()"] if aligned else []
    if kind is TensorDescriptor:
        return [f"{value}.base.dtype", f"tuple({value}.block_shape)"], []
    if kind is not int:
        return None
    parts = []
    if specialized:
        parts.append(f"2 if {value} == 1 else {value} & 15 == 0" if aligned else f"{value} == 1")
    if typed_by_value:
        parts.append(f"-0x80000000 <= {value} <= 0x7FFFFFFF or 4 + ({value} >> 63)")
    return parts, []


# ------------------------------------------------------------------------------------------------------------ launch

_directs: dict[int, Direct] = {}


def launch(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """``kernel[grid](*args, **options)`` on the current device, by the short way where that is known to be the same."""
    direct = _direct(kernel)
    if direct is None:
        kernel[grid](*args, **options)
    else:
        direct.launch(grid, args, options)


def _direct(kernel: Any) -> Direct | None:
    """The launches of a kernel; None for a kernel of whose launches not all is known."""
    direct = _directs.get(id(kernel))  # The kernel's own hash takes longer than a launch; its entry keeps it alive.
    if direct is None and is_known(kernel):
        direct = _directs[id(kernel)] = Direct(kernel)
    return direct


def is_known(kernel: Any) -> bool:
    """Whether this is a kernel that Triton compiles for NVIDIA: neither interpreted nor wrapped in an autotuner, and
    what it compiles for AMD depends on more."""
    return HAS_TRITON and isinstance(kernel, JITFunction) and not torch.version.hip
