# SPDX-License-Identifier: Apache-2.0
"""All of Numba: the one decorator, memory by address, ordered access, system calls, the compile cache.

A kernel is Python that runs in two modes. Compiled, Numba turns it into native code that holds no lock and no
GIL. Interpreted (NUMBA_DISABLE_JIT=1), the same function runs as Python: it can be debugged and its coverage
measured. Everything here therefore exists twice: a plain Python body, and what compiled code sees (`overload`).

Memory is reached in one way only, `at(address, count, dtype)`; who calls it has checked the bounds. What another
party may change meanwhile (a guest, another thread) is read by `load_once` or `load_acquire` and published by
`store_release`: ordinary accesses may be repeated, hoisted or merged by the optimiser.

The cache on disk is `compile_cache`'s. Kernels have no default arguments (each would compile
a second signature), raise nothing and allocate nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from vmq.compile_cache import cache_directory

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, event, extending
from numba.core.typing import templates

if not INTERPRETED and not numba.config.CACHE_DIR:
    # Not through the environment: a child process with other flags or newer sources has a cache of its own.
    numba.config.CACHE_DIR = str(cache_directory())
    Path(numba.config.CACHE_DIR).mkdir(parents=True, exist_ok=True, mode=0o700)

if TYPE_CHECKING:

    def int64(value: Any) -> int:
        """Widen: a 64-bit integer, compiled and interpreted. To the type checker it is a plain int."""

else:
    int64 = np.int64

overload: Any = extending.overload  # Numba's own annotations do not describe it

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
Array = npt.NDArray[Any]


def kernel(function: Kernel) -> Kernel:
    """Compile `function` at its first call: without the GIL, cached on disk, NumPy's error model (no exceptions)."""
    if INTERPRETED:
        return function
    compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    template = compiled.get_call_template
    # A constant argument is a type of its own to Numba, and would be compiled once more with everything below it.
    compiled.get_call_template = lambda args, kws: template(tuple(types.unliteral(one) for one in args), kws)
    return cast("Kernel", compiled)


def meaning(function: Callable[..., Any], *, prefer_literal: bool = False) -> Callable[[Kernel], Kernel]:
    """What `function` is in compiled code: the decorated one gives (signature, LLVM generator) for types of arguments.

    As numba.extending.intrinsic, but under the name of a function that Python can call too. An `overload` would do, and
    be compiled as a function of its own for each combination of types: a third of all compilation.
    """

    def register(definition: Kernel) -> Kernel:
        template = templates.make_intrinsic_template(
            function, definition, function.__name__, prefer_literal=prefer_literal
        )
        templates.infer_global(function, types.Function(template))
        return definition

    return register


def compile_for(function: Callable[..., Any], *arguments: str) -> None:
    """Compile (or load from the cache) one signature now, so that nothing compiles in the middle of traffic."""
    if not INTERPRETED:
        function.compile(tuple(getattr(types, name) for name in arguments))  # type: ignore[attr-defined]


@contextlib.contextmanager
def watch_compilation(note: Callable[[str], None]) -> Iterator[None]:
    """Call `note(name)` at the start of each function that is compiled (not loaded) inside the block."""

    class Listener(event.Listener):
        def on_start(self, happened: Any) -> None:
            note(str(happened.data["dispatcher"].py_func.__name__))

        def on_end(self, happened: Any) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield


# --- memory by address -------------------------------------------------------------------------------------


def at(address: int, count: int, dtype: Any) -> Array:
    """`count` items of `dtype` at `address`, as an array that owns nothing. The caller has checked the bounds."""
    size = np.dtype(dtype).itemsize * int(count)
    if size == 0:
        return np.empty(0, dtype)
    return np.frombuffer((ctypes.c_char * size).from_address(int(address)), dtype)


@meaning(at)
def _at(typingctx: Any, address: Any, count: Any, dtype: Any) -> Any:
    array = types.Array(dtype.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        item = context.get_data_type(array.dtype)
        data = builder.inttoptr(values[0], item.as_pointer())
        size = context.get_constant(types.intp, context.get_abi_sizeof(item))
        made = context.make_array(array)(context, builder)
        context.populate_array(
            made, data=data, shape=[values[1]], strides=[size], itemsize=size, meminfo=None, parent=None
        )
        return made._getvalue()

    return array(types.intp, types.intp, dtype), generate


def peek(address: int, dtype: Any) -> Any:
    """One item of private memory at any address, aligned or not."""
    return at(address, 1, dtype)[0]


def poke(address: int, dtype: Any, value: Any) -> None:
    """Store one item to private or validated memory at any address, aligned or not."""
    at(address, 1, dtype)[0] = value


@meaning(peek)
def _peek(typingctx: Any, address: Any, dtype: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], context.get_data_type(dtype.dtype).as_pointer())
        return builder.load(pointer, align=1)

    return dtype.dtype(types.intp, dtype), generate


@meaning(poke)
def _poke(typingctx: Any, address: Any, dtype: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], context.get_data_type(dtype.dtype).as_pointer())
        builder.store(context.cast(builder, values[2], signature.args[2], dtype.dtype), pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.intp, dtype, value), generate


def address_of(array: Array) -> int:
    """Where the first item of `array` lies; its owner must outlive the number."""
    return int(array.ctypes.data)


overload(address_of)(lambda array: lambda array: np.int64(array.ctypes.data))


def _itemsize(dtype: Any) -> Any:
    """`layout.itemsize` in kernels, as in plain Python: a constant."""
    kind = dtype.dtype
    size = kind.size if isinstance(kind, types.Record) else kind.bitwidth // 8
    return lambda dtype: size


extending.overload_attribute(types.DType, "itemsize")(lambda dtype: _itemsize(dtype))


def copy(to: int, source: int, count: int) -> None:
    """Copy `count` bytes; the ranges do not overlap."""
    ctypes.memmove(int(to), int(source), int(count))


# Ranges beyond LONG bytes are one instruction where the processor is good at it (x86 ERMS): it does not read what it is about
# to write over. A frame of 9000 B into buffers of 2 KiB costs 660 ns and not 800; one of 1514 B the same either way.
LONG = 1800
_MOVE = "rep movsb", "={di},={si},={cx},0,1,2,~{memory}"
_FAST = " erms " in Path("/proc/cpuinfo").read_text()
binding.initialize_native_asmparser()


@meaning(copy)
def _copy(typingctx: Any, to: Any, source: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), values[2].type
        target, origin = builder.inttoptr(values[0], byte), builder.inttoptr(values[1], byte)
        limit = word(LONG if _FAST else -1)  # -1: no range is longer
        with builder.if_else(builder.icmp_unsigned(">", values[2], limit), likely=False) as (long, other):
            with long:
                kind = ir.FunctionType(ir.LiteralStructType([word] * 3), [word] * 3)
                if _FAST:
                    builder.asm(kind, *_MOVE, values, True)
            with other:
                cgutils.raw_memcpy(builder, target, origin, values[2], 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def copy_short(to: int, source: int, count: int) -> None:
    """The same, for ranges of a few cache lines: steps of SHORT bytes, the last of which overlaps the one before it."""
    copy(to, source, count)


SHORT, SHORT_MAX = 32, 256


@meaning(copy_short)
def _copy_short(typingctx: Any, to: Any, source: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = values[2].type
        byte, vector = ir.IntType(8).as_pointer(), ir.VectorType(ir.IntType(8), SHORT).as_pointer()
        target, origin = builder.inttoptr(values[0], byte), builder.inttoptr(values[1], byte)

        def move(offset: Any) -> None:
            wide = builder.load(builder.bitcast(builder.gep(origin, [offset]), vector), align=1)
            builder.store(wide, builder.bitcast(builder.gep(target, [offset]), vector), align=1)

        last = builder.sub(values[2], word(SHORT))
        fits = builder.icmp_unsigned("<=", last, word(SHORT_MAX - SHORT))
        with builder.if_else(fits) as (short, other):
            with short:
                with cgutils.for_range_slice(builder, word(0), last, word(SHORT), intp=word) as (offset, _):
                    move(offset)
                move(last)
            with other:
                cgutils.raw_memcpy(builder, target, origin, values[2], 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def prefetch(address: int, write: int) -> None:
    """Hint that the cache line of `address` is soon read (0) or written (1); any address will do."""


@meaning(prefetch, prefer_literal=True)
def _prefetch(typingctx: Any, address: Any, write: Any) -> Any:
    if not isinstance(write, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        place = builder.inttoptr(values[0], byte)
        builder.call(hint, [place, word(signature.args[1].literal_value), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.intp, write), generate


# --- ordered access: (array, index) or (record, "field") -----------------------------------------------------


def load_once(place: Any, key: Any) -> Any:
    """One read that the optimiser neither repeats nor hoists (monotonic)."""
    return place[key]


def load_acquire(place: Any, key: Any) -> Any:
    """One read; what follows in program order is read after it."""
    return place[key]


def store_release(place: Any, key: Any, value: Any) -> None:
    """One write; what precedes it in program order is visible before it."""
    place[key] = value


def atomic_or(place: Any, key: Any, value: Any) -> None:
    """Set bits that other parties set and clear at the same time."""
    place[key] |= value


def fence() -> None:
    """Full fence: the only thing that keeps an earlier store before a later load, on x86 too."""


def _pointer(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    """LLVM pointer and item type of (array, index) or (record, literal field name)."""
    place, key = signature.args[:2]
    if isinstance(place, types.Record):
        kind = place.typeof(key.literal_value)
        pointer = cgutils.get_record_member(
            builder, values[0], place.offset(key.literal_value), context.get_data_type(kind)
        )
        return pointer, kind
    array = context.make_array(place)(context, builder, values[0])
    pointer = cgutils.get_item_pointer(context, builder, place, array, [values[1]], wraparound=False)
    return pointer, place.dtype


def _item(place: Any, key: Any) -> Any:
    """Type of the item, or None where the arguments are not of the two forms."""
    if isinstance(place, types.Record) and isinstance(key, types.StringLiteral):
        return place.typeof(key.literal_value)
    return place.dtype if isinstance(place, types.Array) and isinstance(key, types.Integer) else None


def _loader(ordering: str) -> Any:
    def typing(typingctx: Any, place: Any, key: Any) -> Any:
        kind = _item(place, key)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pointer, item = _pointer(context, builder, signature, values)
            return builder.load_atomic(pointer, ordering=ordering, align=item.bitwidth // 8)

        return (kind(place, key), generate) if kind else None

    return typing


meaning(load_once, prefer_literal=True)(_loader("monotonic"))
meaning(load_acquire, prefer_literal=True)(_loader("acquire"))


@meaning(store_release, prefer_literal=True)
def _store_release(typingctx: Any, place: Any, key: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer, item = _pointer(context, builder, signature, values)
        narrow = context.cast(builder, values[2], signature.args[2], item)
        builder.store_atomic(narrow, pointer, ordering="release", align=item.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(place, key, value), generate


@meaning(atomic_or, prefer_literal=True)
def _atomic_or(typingctx: Any, place: Any, key: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer, item = _pointer(context, builder, signature, values)
        builder.atomic_rmw(
            "or", pointer, context.cast(builder, values[2], signature.args[2], item), "seq_cst"
        )
        return context.get_dummy_value()

    return types.void(place, key, value), generate


@meaning(fence)
def _fence(typingctx: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


# --- system calls ------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_errno_location = types.ExternalFunction("__errno_location", types.intp())


_memcmp = types.ExternalFunction("memcmp", types.int32(*(types.intp,) * 3))


def same_bytes(one: int, other: int, count: int) -> bool:
    """Whether two ranges of memory hold the same."""
    return ctypes.string_at(int(one), int(count)) == ctypes.string_at(int(other), int(count))


overload(same_bytes)(
    lambda one, other, count: (
        lambda one, other, count: _memcmp(np.intp(one), np.intp(other), np.intp(count)) == 0
    )
)


def system_call(symbol: str, arity: int, *, wide: bool = False) -> Callable[..., int]:
    """A libc function of `arity` 64-bit arguments that gives its result, or minus errno, in both modes.

    Its C type is int, or `wide`: ssize_t or a pointer. The upper half of an int's register is not defined.
    """
    plain = getattr(_libc, symbol)
    plain.restype = ctypes.c_ssize_t if wide else ctypes.c_int
    result_type = types.intp if wide else types.int32
    external = types.ExternalFunction(symbol, result_type(*(types.intp,) * arity))

    def call(*arguments: int) -> int:
        result = int(plain(*(ctypes.c_ssize_t(int(value)) for value in arguments)))
        return -ctypes.get_errno() if result == -1 else result

    names = ", ".join("abcdef"[:arity])
    wrapper: dict[str, Any] = {"external": external, "settle": _settle, "intp": np.intp, "call": call}
    casts = ", ".join(f"intp({name})" for name in "abcdef"[:arity])
    exec(  # the arity decides the text: an overload takes no *arguments
        f"def {symbol}({names}): return call({names})\n"
        f"def overloaded({names}): return lambda {names}: settle(external({casts}))",
        wrapper,
    )
    overload(wrapper[symbol])(wrapper["overloaded"])
    function: Callable[..., int] = wrapper[symbol]
    return function


def _settle(result: int) -> int:
    """Result of a libc call, or minus errno."""
    if result == -1:
        return -int64(at(_errno_location(), 1, np.int32)[0])
    return int64(result)


if not INTERPRETED:
    _settle = numba.njit(nogil=True, error_model="numpy")(_settle)

c_read = system_call("read", 3, wide=True)
c_write = system_call("write", 3, wide=True)
c_epoll_wait = system_call("epoll_wait", 4)
c_sched_yield = system_call("sched_yield", 0)


def signal_handler(function: Callable[[int, int, int], None]) -> Callable[[], int]:
    """A function that gives the C address of `function(number, siginfo, context)`; compiled at its first call."""
    made: list[Any] = []

    def address() -> int:
        if not made:
            if INTERPRETED:
                made.append(
                    ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_ssize_t, ctypes.c_ssize_t)(function)
                )
            else:
                made.append(
                    numba.cfunc("void(int32, intp, intp)", cache=True, error_model="numpy")(
                        python_of(function)
                    )
                )
        handler = made[0]
        return int(ctypes.cast(handler, ctypes.c_void_p).value or 0) if INTERPRETED else int(handler.address)

    return address


def python_of(function: Any) -> Any:
    """A kernel as Python: for whole arrays, or for another compilation."""
    return getattr(function, "py_func", function)
