"""Launches on a stand-in driver, by ``frame.direct`` and by Triton itself, and compares what reaches the chip.

Run by test_direct_launch.py in a process of its own, in which Triton does not interpret. Nothing is compiled: a
compiled kernel is a number, a new one for each set of types, constants and attributes that Triton compiles.
"""

import importlib
import itertools
import json
import random
import sys
import threading
import traceback

import torch
import triton
import triton.language as tl
from llmfast.kernels.compile_check.measure import chip_of, op_families
from llmfast.kernels.frame import direct, launch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

launched: list[tuple] = []  # what reached the chip
numbers = itertools.count()
own_launches = 0  # of Triton's


class Driver:
    device, stream = 0, 0

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return 100 * device + self.stream

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def compile_nothing(src, target=None, options=None, **others):
    kernel = object.__new__(CompiledKernel)
    kernel.src, kernel.name, kernel.hash = src, src.fn.__name__, str(next(numbers))
    kernel.module, kernel.function, kernel.packed_metadata = object(), int(kernel.hash), (options["num_warps"],)
    kernel._run = lambda *args: launched.append((args[:6], args[9:]))
    return kernel


def count_own_launches():
    run = JITFunction.run

    def counted(self, *args, **options):
        global own_launches
        own_launches += 1
        return run(self, *args, **options)

    JITFunction.run = counted


driver = Driver()
triton.runtime.driver.set_active(driver)
triton.compiler.compile = compile_nothing
count_own_launches()


@triton.jit(do_not_specialize=["plain"], do_not_specialize_on_alignment=["unaligned"])
def mixed(
    x, y, several, plain, unaligned, free, wide: tl.int64, narrow: tl.int32, real: tl.float32, flag: tl.int1,
    A: tl.constexpr, B: tl.constexpr = 7,
):  # fmt: skip
    pass


WHOLE = (0, 1, 2, 8, 15, 16, 17, 32, -1, -16, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**62, 2**63, 2**64 - 16)
MEMORY = torch.zeros(64, dtype=torch.float32)


def draw_tensor(r):
    dtype = r.choice((torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8))
    return MEMORY.view(torch.uint8)[r.choice((0, 0, 8, 16, 32)) :].view(dtype)[: r.choice((0, 4, 4))]


def draw_free(r):
    tensor = draw_tensor(r)
    kinds = (None, True, False, 1.0, 0.5, r.choice(WHOLE), tensor, tensor)
    return r.choice((*kinds, torch.nn.Parameter(tensor, requires_grad=False), descriptor(r)))


def descriptor(r):
    base = torch.zeros(64, 64, dtype=r.choice((torch.float16, torch.float32)))
    return TensorDescriptor.from_tensor(base, [16, r.choice((16, 32))])


def draw_tuple(r):
    values = [draw_tensor(r) for _ in range(2)], [r.choice(WHOLE) for _ in range(r.choice((0, 3)))]
    return r.choice((*map(tuple, values), (draw_tensor(r), None, r.choice(WHOLE), 0.5), None))


def draw(r):
    """Arguments and options of a launch of ``mixed``."""
    small = [each for each in WHOLE if -(2**63) <= each < 2**63]
    args = [draw_free(r), r.choice((None, draw_tensor(r))), draw_tuple(r), draw_free(r), r.choice(WHOLE), draw_free(r)]
    args += [r.choice(small), r.choice((1, 2, 16)), r.choice((0.5, 1.0, 2)), r.choice((True, False))]
    constants = {"A": r.choice((0, 1, True, False, None, "a", 16, 1.0, 0.0, -0.0))}
    if r.random() < 0.5:
        constants["B"] = r.choice((7, 8))
    options = {"num_warps": r.choice((4, 8)), "maxnreg": r.choice((None, 64)), "enable_fp_fusion": True}
    return tuple(args), constants | options


def both_ways(kernel, grid, args, options):
    """What reaches the chip by Triton's launch and, twice, by ours."""
    del launched[:]
    kernel[grid](*args, **options)
    for _ in range(2):
        direct.launch(kernel, grid, args, options)
    return list(launched)


def same(records):
    """Equal numbers, and the same objects as arguments, of equal types."""
    (head, values), *others = records
    for other_head, others_values in others:
        assert head == other_head, (head, other_head)
        assert all(
            one is other or (one == other and type(one) is type(other))
            for one, other in zip(values, others_values, strict=True)
        )


def one_change_at_a_time():
    """Trap: a description that leaves out something that a compiled kernel depends on. All values of an argument follow
    each other while the others stay, so that two that are described alike meet the same compiled kernel."""
    r = random.Random(1)
    tensors = [MEMORY, MEMORY[4:], MEMORY[2:], MEMORY[1:], MEMORY.half(), MEMORY.bfloat16()[4:], None]
    small = [each for each in WHOLE if -(2**63) <= each < 2**63]
    constants = [0, 1, True, False, None, "a", 16, 1.0, 0.0, -0.0]
    descriptors = [descriptor(r) for _ in range(8)]
    free = [*tensors, *WHOLE, *descriptors, True, False, 0.5, 1.0, torch.nn.Parameter(MEMORY)]
    tuples = [(one, other) for one in tensors for other in (1, 5, 16, None, MEMORY, MEMORY[1:])]
    pools = [free, tensors, tuples, free, WHOLE, free, small, small, (0.5, 1.0, 2), (True, False), constants, constants]
    base = (MEMORY, MEMORY, (MEMORY, 5), 5, 5, 5, 5, 5, 0.5, True, 3, 7)
    for i, pool in enumerate(pools):
        for value in pool:
            args = (*base[:i], value, *base[i + 1 :])
            same(both_ways(mixed, (1,), args, {"num_warps": 4}))
    for options in ({"num_warps": 8}, {"num_warps": 4, "maxnreg": 64}, {"num_warps": 4, "maxnreg": None}):
        same(both_ways(mixed, (1,), base, options))
    for device in range(3):
        driver.device = device
        same(both_ways(mixed, (1,), base, {"num_warps": 4}))


def prepared_launches():
    """Traps as above, of launches in which all but the first arguments is fixed."""
    r = random.Random(2)
    tensors = [MEMORY, MEMORY[4:], MEMORY[2:], MEMORY[1:], MEMORY.half(), MEMORY.bfloat16()[4:], None]
    pools = [[*tensors, torch.nn.Parameter(MEMORY), descriptor(r), descriptor(r)], tensors, [(MEMORY, 5), None, MEMORY]]
    for fixed in ((5, 5, 5, 5, 5, 0.5, True), (1, 16, MEMORY, 2**40, 16, 1, False)):
        prepared = direct.Prepared(mixed, (3, 2), fixed, {"A": 3, "num_warps": 4})
        calls = [
            (*pick[:i], value, *pick[i + 1 :])
            for pick in [(MEMORY, MEMORY, None)]
            for i in range(3)
            for value in pools[i]
        ]
        calls += [tuple(map(r.choice, pools)) for _ in range(200)]
        for call in calls:
            driver.device, driver.stream = r.randrange(2), r.randrange(3)
            del launched[:]
            mixed[3, 2](*call, *fixed, A=3, num_warps=4)
            for _ in range(2):
                prepared.launch(call)
            same(launched)
    driver.device = driver.stream = 0
    before = own_launches
    prepared.launch((MEMORY, None, None))
    assert own_launches == before, "it does not go the short way"
    seen = []
    knobs.runtime.launch_enter_hook.add(seen.append)
    prepared.launch((MEMORY, None, None))
    knobs.runtime.launch_enter_hook.remove(seen.append)
    assert own_launches == before + 1
    other = Driver()
    triton.runtime.driver.set_active(other)
    prepared.launch((MEMORY, None, None))
    triton.runtime.driver.set_active(driver)
    assert own_launches == before + 2, "another driver got a kernel of the first"


def random_launches():
    r = random.Random(0)
    covered = 0
    for _ in range(1500):
        driver.device, driver.stream = r.randrange(2), r.randrange(3)
        grid = r.choice(((3,), (3, 2), (3, 2, 5)))
        before = own_launches
        same(both_ways(mixed, grid, *draw(r)))
        covered += own_launches - before < 3
    assert covered > 700, f"only {covered} launches went the short way"


def every_launch_of_the_library():
    """Of every case of the compile check, on two kinds of chip."""
    own, seen = set(), 0

    def compare(kernel, grid, args, options):
        nonlocal seen
        before = own_launches
        same(both_ways(kernel, grid, args, options))
        seen += 1
        if own_launches - before == 3:
            own.add(kernel.__name__)

    launch.compile_only = compare
    for target in ("80", "90"):
        launch.set_chip(torch.device("meta"), chip_of(target))
        driver.device = int(target)
        for family in op_families():
            for case in importlib.import_module(f"llmfast.kernels.{family}.compile_cases").compile_cases(
                chip_of(target)
            ):
                case.run()
    driver.device = 0
    assert seen > 300, seen
    assert own <= {"forward_hopper_kernel"}, own  # its descriptors carry layouts


def simple_launch(**options):
    return mixed, (1,), (MEMORY, None, None, 5, 5, 5, 5, 5, 0.5, True, 3), {"num_warps": 4, **options}


def goes_the_short_way(*launch_arguments):
    before = own_launches
    direct.launch(*launch_arguments)
    return own_launches == before


def whatever_watches_launches_sees_them():
    seen = []
    arguments = simple_launch()
    direct.launch(*arguments)
    assert goes_the_short_way(*arguments)
    for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        chain.add(seen.append)
        assert not goes_the_short_way(*arguments)
        chain.remove(seen.append)
        assert goes_the_short_way(*arguments)
    knobs.runtime.launch_enter_hook = lambda metadata: seen.append(metadata)
    assert not goes_the_short_way(*arguments)
    knobs.runtime.launch_enter_hook = None
    assert goes_the_short_way(*arguments)
    mixed.add_pre_run_hook(lambda *args, **options: seen.append(options))
    assert not goes_the_short_way(*arguments)
    assert seen
    mixed.pre_run_hooks.clear()
    for holder, name, value in (
        (knobs.runtime, "debug", True),
        (mixed, "debug", True),
        (knobs.compilation, "instrumentation_mode", "something"),
        (knobs.runtime, "add_stages_inspection_hook", lambda *args: (0, 0)),
    ):
        before = getattr(holder, name)
        setattr(holder, name, value)
        assert not goes_the_short_way(*arguments), name
        setattr(holder, name, before)
        assert goes_the_short_way(*arguments), name


def what_is_unknown_is_left_to_triton():
    class OtherTensor(torch.Tensor):
        pass

    kernel, grid, args, options = simple_launch()
    for i, value in ((0, MEMORY.as_subclass(OtherTensor)), (10, 1.5), (10, tl.float32), (2, ((1, 2), 3))):
        changed = (*args[:i], value, *args[i + 1 :])
        for _ in range(2):
            assert not goes_the_short_way(kernel, grid, changed, options), value


def other_kinds_of_kernels_are_left_alone():
    calls = []

    class Wrapped:
        def __getitem__(self, grid):
            return lambda *args, **options: calls.append((grid, args, options))

    direct.launch(Wrapped(), (4,), (1, 2), {"num_warps": 8})
    assert calls == [((4,), (1, 2), {"num_warps": 8})]


def what_does_not_compile_is_asked_for_again():
    arguments = simple_launch(num_warps=2)
    knobs.runtime.jit_cache_hook = lambda **facts: True  # as a hook that compiles elsewhere
    assert not goes_the_short_way(*arguments)
    knobs.runtime.jit_cache_hook = None
    assert not goes_the_short_way(*arguments)
    assert goes_the_short_way(*arguments)


def a_launch_that_fails_fails_again():
    """Trap: an error of the first launch, as of too much shared memory, that later launches forget."""
    arguments = simple_launch(num_warps=16)

    def failing(src, **others):
        kernel = compile_nothing(src, **others)

        def fail(*args):
            raise MemoryError

        kernel._run = fail
        return kernel

    mixed.compile = failing
    for _ in range(3):
        try:
            direct.launch(*arguments)
        except MemoryError:
            continue
        raise AssertionError("it went through")
    mixed.compile = compile_nothing


def another_driver_has_kernels_of_its_own():
    arguments = simple_launch()
    direct.launch(*arguments)
    assert goes_the_short_way(*arguments)
    triton.runtime.driver.set_active(Driver())
    assert not goes_the_short_way(*arguments)
    triton.runtime.driver.set_active(driver)
    assert goes_the_short_way(*arguments)


def threads_launch_side_by_side():
    faults = []

    def work(seed):
        try:
            r = random.Random(seed)
            for _ in range(200):
                direct.launch(mixed, (seed, 1, 1), *draw(r))
        except Exception:
            faults.append(traceback.format_exc())

    del launched[:]
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
    assert len(launched) == 8 * 200
    wanted = {}  # by Triton alone
    ours = list(launched)
    for seed in range(1, 9):
        r = random.Random(seed)
        del launched[:]
        for _ in range(200):
            args, options = draw(r)
            mixed[(seed, 1, 1)](*args, **options)
        wanted[seed] = [head for head, _ in launched]
        assert [head for head, _ in ours if head[0] == seed] == wanted[seed]


CHECKS = (
    one_change_at_a_time,
    prepared_launches,
    random_launches,
    every_launch_of_the_library,
    whatever_watches_launches_sees_them,
    what_is_unknown_is_left_to_triton,
    other_kinds_of_kernels_are_left_alone,
    what_does_not_compile_is_asked_for_again,
    a_launch_that_fails_fails_again,
    another_driver_has_kernels_of_its_own,
    threads_launch_side_by_side,
)

if __name__ == "__main__":
    found = {}
    for check in CHECKS:
        driver.device = driver.stream = 0
        try:
            check()
            found[check.__name__] = ""
        except Exception:
            found[check.__name__] = traceback.format_exc()
    json.dump(found, sys.stdout)
