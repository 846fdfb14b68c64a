"""Runs Gluon kernels on the CPU, for Triton has no interpreter for Gluon.

The kernel's own source is executed with NumPy in place of ``gl``, ``ampere`` and ``hopper``. Of a warp-specialized
kernel one partition runs at a time, up to
its next barrier, copy or wait; which one, and which copy under way is done before, is drawn at random from a seed.
Copies and products happen as late as the draw or a wait lets them, so that a tile released too early is overwritten
while it is needed, and a missing signal is a deadlock. Layouts and registers are the compiler's business.
"""

import importlib.util
import random
import sys
import threading
from types import FunctionType, SimpleNamespace
from unittest import mock

import numpy as np
from triton.language import constexpr

PATIENCE = 60  # seconds for a partition to reach its next stop


class Array(np.ndarray):
    """A tensor in registers."""

    def to(self, dtype, bitcast=False):
        return self.view(dtype) if bitcast else self.astype(dtype)

    def permute(self, order):
        return self.transpose(order)

    @property
    def type(self):
        return SimpleNamespace(layout=None)


def array(values, dtype=None):
    return np.asarray(values, dtype).view(Array)


class Pointer:
    def __init__(self, memory, offset=0):
        self.memory, self.offset = memory, offset

    @property
    def dtype(self):
        return SimpleNamespace(element_ty=self.memory.dtype.type)

    def __add__(self, offset):
        return Pointer(self.memory, self.offset + offset)

    def to(self, dtype):
        """As a pointer to numbers of another dtype."""
        place = self.offset * self.memory.itemsize
        assert np.all(place % np.dtype(dtype).itemsize == 0), "a pointer between two numbers"
        return Pointer(self.memory.view(dtype), place // np.dtype(dtype).itemsize)


class Shared:
    """A tensor in shared memory; ``unfenced`` while the copy engine may not see what was stored."""

    def __init__(self, data, state=None):
        self.data, self.shape, self.dtype = data, list(data.shape), data.dtype
        self.state = state or SimpleNamespace(unfenced=False)

    def index(self, i):
        return Shared(self.data[int(i)], self.state)

    def reshape(self, shape):
        return Shared(self.data.reshape(shape), self.state)

    def permute(self, order):
        return Shared(self.data.transpose(order), self.state)

    def store(self, values):
        self.data[...] = values
        self.state.unfenced = True

    def gather(self, index, axis):
        return array(np.take_along_axis(self.data, np.asarray(index), axis))


class Barrier:
    def __init__(self):
        self.completed = self.bytes = 0

    def init(self, count):
        self.count = self.pending = count

    def arrive(self):
        assert self.pending > 0, "more arrivals than the barrier counts"
        self.pending -= 1
        self.settle()

    def settle(self):
        if self.pending == 0 and self.bytes == 0:
            self.completed += 1
            self.pending = self.count


class Barriers(list):
    def index(self, i):
        return self[int(i)]


class Descriptor:
    """A matrix in global memory, and the block of it that a copy takes; outside of it are zeros."""

    def __init__(self, data, block):
        self.data, self.dtype, self.layout = data, data.dtype, None
        self.block_type = SimpleNamespace(shape=list(block), nbytes=int(np.prod(block)) * data.dtype.itemsize)

    def region(self, place):
        starts = [int(x) for x in place]
        ends = [min(x + n, size) for x, n, size in zip(starts, self.block_type.shape, self.data.shape, strict=True)]
        inside = tuple(slice(x, max(x, end)) for x, end in zip(starts, ends, strict=True))
        return self.data[inside], tuple(slice(0, max(end - x, 0)) for x, end in zip(starts, ends, strict=True))


class Product:
    """A product under way: computed when somebody waits for it."""

    def __init__(self, compute):
        self.compute, self.value = compute, None

    def finish(self):
        self.value = self.compute()


class Program:
    """One program's partitions and copies, in a random order that the seed fixes."""

    def __init__(self, number, programs, seed):
        self.number, self.programs, self.random = number, programs, random.Random(seed)
        self.copies, self.partitions, self.finished = [], [], threading.Semaphore(0)
        self.local = threading.local()
        self.lateness = self.random.choice((0.5, 1.0))  # of copies; at 1, until nothing else can go on

    def run(self, partitions):
        for function, arguments in partitions:
            partition = SimpleNamespace(ready=lambda: True, go=threading.Semaphore(0), error=None, done=False)
            self.partitions.append(partition)
            threading.Thread(target=self.work, args=(partition, function, arguments), daemon=True).start()
        while not all(partition.done for partition in self.partitions):
            ready = [p for p in self.partitions if not p.done and p.ready()]
            assert ready or self.copies, "deadlock: every partition waits"
            late = ready and self.random.random() < self.lateness
            chosen = self.random.choice(ready if late or not self.copies else self.copies)
            if chosen in self.copies:
                self.copies.remove(chosen)
                chosen()
                continue
            chosen.go.release()
            assert self.finished.acquire(timeout=PATIENCE), "a partition hangs"
            if chosen.error:
                raise chosen.error
        assert not self.copies, "the program ended before its copies"

    def work(self, partition, function, arguments):
        self.local.partition, self.local.products, self.local.stores = partition, [], []
        partition.go.acquire()
        try:
            function(*arguments)
        except BaseException as error:
            partition.error = error
        partition.done = True
        self.finished.release()

    def pause(self, ready=lambda: True):
        """Lets others run until this partition is ready, and perhaps longer."""
        partition = self.local.partition
        partition.ready = ready
        self.finished.release()
        assert partition.go.acquire(timeout=PATIENCE)


def mbarrier_of(program):
    def wait(barrier, phase, pred=True):
        program.pause(lambda: not pred or barrier.completed & 1 != int(phase))

    def expect(barrier, count):
        barrier.bytes += count
        barrier.arrive()

    def arrive(barrier):
        program.pause()
        barrier.arrive()

    return SimpleNamespace(
        init=lambda barrier, count: barrier.init(count), wait=wait, expect=expect, arrive=arrive,
        MBarrierLayout=lambda: None,
    )  # fmt: skip


def tma_of(program):
    def to_shared(descriptor, place, barrier, to):
        def copy():
            source, inside = descriptor.region(place)
            to.data[...] = 0
            to.data[inside] = source
            barrier.bytes -= descriptor.block_type.nbytes
            barrier.settle()

        program.copies.append(copy)
        program.pause()

    def to_global(descriptor, place, source):
        assert not source.state.unfenced, "stored to shared memory, and copied without a fence"

        def copy():
            target, inside = descriptor.region(place)
            target[...] = source.data[inside]

        program.copies.append(copy)
        program.local.stores.append(copy)
        program.pause()

    def store_wait(pending):
        assert pending == 0
        stores = program.local.stores
        program.pause(lambda: not any(store in program.copies for store in stores))
        stores.clear()

    return SimpleNamespace(async_load=to_shared, async_store=to_global, store_wait=store_wait)


def hopper_of(program):
    def values(x):
        return x.data if isinstance(x, Shared) else x

    def mma(a, b, acc, use_acc=True, is_async=False):
        def compute():
            product = values(a).astype(np.float32) @ values(b).astype(np.float32)
            return array(product + acc if use_acc else product)

        product = Product(compute)
        program.local.products.append(product)
        return product if is_async else mma_wait(0, (product,))

    def mma_wait(outstanding, deps):
        program.pause()
        products = program.local.products
        while len(products) > outstanding:
            products.pop(0).finish()
        found = []
        for x in deps:
            assert not isinstance(x, Product) or x.value is not None, "a product is used before it is waited for"
            found.append(x.value if isinstance(x, Product) else x)
        return found[0] if len(found) == 1 else tuple(found)

    def fence():
        for shared in program.shared:
            shared.state.unfenced = False

    return {"mbarrier": mbarrier_of(program), "tma": tma_of(program), "warpgroup_mma": mma,
            "warpgroup_mma_wait": mma_wait, "fence_async_shared": fence}  # fmt: skip


def language_of(program):
    program.shared = []

    def allocate(dtype, shape, layout):
        if dtype == np.int64:
            return Barriers(Barrier() for _ in range(shape[0]))
        shared = Shared(np.full(shape, np.nan, dtype))  # Whoever reads before a copy came reads NaN.
        program.shared.append(shared)
        return shared

    def store(pointer, value, mask):
        pointer.memory[np.asarray(pointer.offset)[np.asarray(mask)]] = np.asarray(value)[np.asarray(mask)]

    def load(pointer, mask=True, other=0):
        place, mask = np.broadcast_arrays(pointer.offset, mask)
        inside = (place >= 0) & (place < pointer.memory.size)
        assert np.all(inside | ~mask), "a load outside of the tensor"
        return array(np.where(mask, pointer.memory[np.where(mask, place, 0)], other).astype(pointer.memory.dtype))

    def cdiv(a, b):
        return -(-a // b)

    layout = lambda *_, **__: None  # noqa: E731
    return {
        "constexpr": lambda x: x, "float32": np.float32, "int64": np.int64, "static_range": range,
        "arange": lambda a, b, layout=None: array(np.arange(a, b)),
        "zeros": lambda shape, dtype, layout=None: array(np.zeros(shape, dtype)),
        "full": lambda shape, value, dtype, layout=None: array(np.full(shape, value, dtype)),
        "where": lambda c, x, y: array(np.where(c, x, y)), "maximum": lambda x, y: array(np.maximum(x, y)),
        "max": lambda x, axis: array(x.max(axis)), "sum": lambda x, axis: array(x.sum(axis)),
        "exp2": lambda x: array(np.exp2(x)), "log2": lambda x: array(np.log2(x)), "cdiv": cdiv,
        "convert_layout": lambda x, _: x, "NVMMADistributedLayout": layout, "SliceLayout": layout,
        "DotOperandLayout": layout, "allocate_shared_memory": allocate, "store": store, "load": load,
        "BlockedLayout": layout, "DistributedLinearLayout": layout, "SwizzledSharedLayout": layout,
        "int16": np.int16, "int32": np.int32, "pointer_type": lambda dtype: dtype, "barrier": lambda: None,
        "join": lambda a, b: array(np.stack((a, b), -1)),
        "program_id": lambda axis: array(program.number), "num_programs": lambda axis: program.programs,
        "warp_specialize": lambda partitions, warps, registers: program.run(partitions),
    }  # fmt: skip


class Current:
    """``gl`` and ``hopper`` of whichever program runs."""

    def __init__(self):
        self.names = {}

    def __getattr__(self, name):
        if name in ("mbarrier", "tma") and name not in self.names:
            self.names[name] = Current()
        if name not in self.names:  # asked for while the file is imported, and called by a program
            return lambda *arguments: self.names[name](*arguments)
        return self.names[name]

    def become(self, names):
        for name, value in names.items():
            if isinstance(self.names.get(name), Current):
                self.names[name].become(vars(value))
            else:
                self.names[name] = value


def plain(names):
    """Compile-time constants as the numbers they are."""
    return {name: x.value if isinstance(x, constexpr) else x for name, x in names.items()}


AMPERE = SimpleNamespace(mma_v2=lambda a, b, acc: array(a.astype(np.float32) @ b.astype(np.float32) + acc))


class Emulator:
    """The kernels of a file of Gluon code, as functions to run on NumPy arrays."""

    def __init__(self, path, package, change=lambda source: source):
        self.gl, self.hopper = Current(), Current()
        self.gl.become(language_of(Program(0, 1, 0)))

        def jit(function=None, **options):
            if function is None:
                return jit
            if "tl" in function.__globals__:  # A Triton function that the file borrows.
                names = plain(function.__globals__) | {"tl": self.gl}
                return FunctionType(function.__code__, names, function.__name__)
            return function

        stand_ins = {"gl": self.gl, "hopper": self.hopper, "ampere": AMPERE, "gluon": SimpleNamespace(jit=jit)}
        spec = importlib.util.spec_from_file_location(f"{package}.emulated", path)
        self.module = importlib.util.module_from_spec(spec)
        with mock.patch.multiple(sys.modules["llmfast.kernels.frame._triton"], **stand_ins):
            exec(compile(change(path.read_text()), str(path), "exec"), self.module.__dict__)
        vars(self.module).update(plain(vars(self.module)))

    def launch(self, kernel, programs, seed, *arguments, **options):
        with np.errstate(invalid="ignore", divide="ignore"):
            for number in range(programs):
                program = Program(number, programs, f"{seed} {number}")
                self.gl.become(language_of(program))
                self.hopper.become(hopper_of(program))
                getattr(self.module, kernel)(*arguments, **options)
