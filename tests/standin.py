"""A stand-in for a GPU: tensors of the CPU that say they live on another device, so that a machine without one tests.

As on a GPU, an operation on tensors of both devices raises (a CPU tensor without dimensions may take part), and some
operations make the CPU wait until the device has done all its work. `counted` lists those:

    reads     .item(), .tolist(), bool(), an index without dimensions, a copy to the CPU that is not non_blocking
    sizes     results whose size hangs on values: nonzero, indexing with a mask, bincount, unique
    checks    linear algebra that raises on singular matrices; equal
    uploads   copies to the device that are not non_blocking, and tensors made there from Python numbers

Every entry names the operation and the line of ours that asked for it. Autocast does nothing on this device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "standin"
OURS = str(Path(__file__).parents[1] / "lit_medgen")

READS = {"aten::_local_scalar_dense", "aten::is_nonzero"}
SIZES = {"aten::nonzero", "aten::masked_select", "aten::bincount", "aten::_unique2", "aten::unique_dim"}
CHECKS = {"aten::_linalg_check_errors", "aten::equal"}
INDEXING = {"aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


@dataclass(eq=False)
class Waits:
    """What made the CPU wait for the device: "operation at file:line" each.

    Attributes:
        found: reads, sizes and checks.
        uploads: those.
    """

    found: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)


class _Backend(backend_registration._DummyBackendModule):
    """Autocast asks for these."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Hidden(backend_registration._DummyPrivateUse1Hook):
    """Nobody who asks whether there is an accelerator is told of this one."""

    def is_available(self) -> bool:
        return False


# The first backward pass of a process makes a queue for each device known by then; no fork after it has one of its own.
backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend(), _Hidden())
DEVICE = torch.device(NAME, 0)


class StandIn(Tensor):
    """A tensor on the device; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[StandIn], inner: Tensor) -> StandIn:
        made: StandIn = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"StandIn({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_watching: list[Waits] = []


@contextmanager
def counted() -> Iterator[Waits]:
    """What waits inside; tensors can be made on the device there."""
    waits = Waits()
    _watching.append(waits)
    try:
        with _Factories(), _Constructors():
            yield waits
    finally:
        _watching.remove(waits)


def moved(value: Any) -> Any:
    """A module, tensor or batch on the device; not counted as an upload."""
    watching, _watching[:] = _watching[:], []
    try:
        with counted():
            return value.to(DEVICE)
    finally:
        _watching[:] = watching


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, tensors = _name(func), [*_tensors(args), *_tensors(kwargs.values())]
    inside = [tensor for tensor in tensors if isinstance(tensor, StandIn)]
    target = kwargs.get("device")
    lands_here = bool(inside) if target is None else torch.device(target).type == NAME
    if name in ("aten::_to_copy", "aten::copy_"):
        _note_copy(name, args, kwargs, bool(inside), lands_here)
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    elif inside:
        _refuse_mixture(name, args, tensors)
        if name in READS | SIZES | CHECKS or (name in INDEXING and _by_mask(args)):
            _note(name)
    if target is not None and torch.device(target).type == NAME:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = func(*_each(_inner, args), **{key: _each(_inner, value) for key, value in kwargs.items()})
    if name == "aten::copy_":
        return args[0]
    if not lands_here:
        return result
    changed = {id(tensor.inner): tensor for tensor in inside}  # by an operation in place
    return _each(lambda x: _wrapped(x, changed) if isinstance(x, Tensor) else x, result)


def _wrapped(tensor: Tensor, known: dict[int, StandIn]) -> StandIn:
    return known[id(tensor)] if id(tensor) in known else StandIn(tensor)


@cache
def _name(func: Any) -> str:
    return str(func._schema.name)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments; an argument may be a list of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """A value, or a list or tuple of values, with a function applied to each."""
    return type(value)(_each(function, x) for x in value) if type(value) in (list, tuple) else function(value)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, StandIn) else value


def _note_copy(name: str, args: Any, kwargs: dict[str, Any], inside: bool, lands_here: bool) -> None:
    if name == "aten::copy_":
        goes, comes = (isinstance(tensor, StandIn) for tensor in args[:2])
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking")
    else:
        goes, comes, non_blocking = lands_here, inside, kwargs.get("non_blocking")
    if goes != comes and not non_blocking:
        _note(name, upload=goes)


def _by_mask(args: Any) -> bool:
    """Whether a mask chooses: its true places are counted first, unless a single number is put there."""
    masks = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    put = args[2] if len(args) > 2 and isinstance(args[2], Tensor) else None
    return masks and (put is None or isinstance(put, StandIn) or put.ndim > 0)


def _refuse_mixture(name: str, args: Any, tensors: list[Tensor]) -> None:
    outside = [tensor for tensor in tensors if not isinstance(tensor, StandIn)]
    if name in INDEXING:  # a tensor may be indexed from the CPU, but not the other way round
        wrong = not isinstance(args[0], StandIn) or any(
            isinstance(value, Tensor) and value.ndim and not isinstance(value, StandIn) for value in args[2:]
        )
        if not wrong and outside:
            _note(name, upload=True)
    else:
        wrong = any(tensor.ndim for tensor in outside)
    if wrong:
        where = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{name}: tensors on two devices: {where}")


def _note(name: str, upload: bool = False) -> None:
    frame = sys._getframe()
    while frame.f_back and not (frame.f_code.co_filename.startswith(OURS)):
        frame = frame.f_back
    place = f"{name.removeprefix('aten::')} at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    for waits in _watching:
        (waits.uploads if upload else waits.found).append(place)


class _Factories(TorchDispatchMode):
    """Catches what makes a tensor out of nothing, which no argument brings here."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """Catches what fills a tensor below the dispatcher: torch.tensor, and lists as indices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and target is not None and torch.device(target).type == NAME:
            _note(func.__name__, upload=True)
            return StandIn(func(*args, **(kwargs | {"device": "cpu"})))
        if func is Tensor.tolist and isinstance(args[0], StandIn):
            _note("tolist")
            return args[0].inner.tolist()
        if func is Tensor.numpy and isinstance(args[0], StandIn):
            raise TypeError("can't convert a tensor of the device to numpy")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], StandIn):
            keys = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(key, list | range) and len(key) for key in keys):
                _note("a list as index", upload=True)
                keys = tuple(
                    StandIn(torch.tensor(key)) if isinstance(key, list | range) and len(key) else key for key in keys
                )
                args = (args[0], keys if isinstance(args[1], tuple) else keys[0], *args[2:])
        return func(*args, **kwargs)
