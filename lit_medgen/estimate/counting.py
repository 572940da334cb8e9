"""Counts the floating-point operations of tensor code, and the bytes that it holds at most, also on fake tensors.

A fake tensor (`torch._subclasses.FakeTensorMode`) has a shape, a type and a storage of so many bytes, but no values. So
what runs on fake tensors takes neither memory nor much time, and every storage that comes and goes can be counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
BLOCK = 16
"""Channels of a block of oneDNN's layouts for AVX-512, which shorter ones are padded to."""
Scratch = Callable[[Any, Sequence[Any], Any], int]
PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precision of a trainer -> the type in which autocast computes."""
IN_FLOAT32: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (functional, ("group_norm", "layer_norm", "softmax", "log_softmax", "cross_entropy", "cosine_similarity")),
    (functional, ("l1_loss", "mse_loss", "smooth_l1_loss")),
    (torch, ("softmax", "log_softmax", "norm", "exp", "log", "pow", "sum", "cumsum")),
    (Tensor, ("softmax", "log_softmax", "norm", "exp", "log", "pow", "sum", "cumsum")),
)
"""What a GPU's autocast computes in float32 (PyTorch's documentation, "CUDA Ops that can autocast to float32")."""


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Formulas of attention on a CPU, which PyTorch's table lacks; they take shapes, as `FlopCounterMode` gives them."""


@contextmanager
def as_on_gpu(enabled: bool = True) -> Iterator[None]:
    """Under a CPU's autocast computes in float32 what a GPU's does, so that as many bytes are kept.

    The functions themselves are replaced: a function mode of PyTorch is not active within a backward pass, in which
    checkpointed blocks are computed again.
    """
    with ExitStack() as stack:
        for owner, names in IN_FLOAT32 if enabled else ():
            for name in names:
                stack.enter_context(patch.object(owner, name, _in_float32(getattr(owner, name))))
        yield


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args = tuple(each.float() if _is_half(each) else each for each in args)
        return function(*args, **options)

    return called


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def onednn_scratch(packet: Any, args: Sequence[Any], result: Any) -> int:
    """Bytes that a convolution of oneDNN holds until it returns: its tensors again, their channels in blocks of 16."""
    if packet is aten.convolution:
        given, made = _blocked(args[0]), _blocked(result)
        return max(given + made - result.nbytes, made)
    if packet is aten.convolution_backward:
        return _blocked(args[0]) + _blocked(args[1])
    return 0


def _blocked(tensor: Tensor) -> int:
    channels = tensor.shape[1]
    return tensor.nbytes // max(1, channels) * (-(-channels // BLOCK) * BLOCK)


class Counting(TorchDispatchMode):
    """Counts operations, 2 for each multiplication and addition of products and convolutions, and bytes.

    Attributes:
        flops: floating-point operations so far.
        num_bytes: that storages hold now, of all tensors that were seen or given to `hold`.
        peak: the most they held since `restart`, with what operations hold until they return.

    Args:
        scratch: operation, its arguments and result -> bytes that it holds until it returns; None: nothing.
    """

    def __init__(self, scratch: Scratch | None = None) -> None:
        super().__init__()
        self.scratch = scratch
        self.flops, self.num_bytes, self.peak = 0, 0, 0
        self._known: dict[int, Any] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that were there before."""
        for tensor in tensors:
            self._see(tensor)

    def restart(self) -> None:
        """Counts operations, and the most bytes, from now on."""
        self.flops, self.peak = 0, self.num_bytes

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet is aten._local_scalar_dense:  # a fake tensor has no value; what depends on one gets 0, or false
            return False if args[0].dtype is torch.bool else 0.0 if args[0].is_floating_point() else 0
        result = func(*args, **kwargs)
        self.hold(each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor))
        if self.scratch:
            self.peak = max(self.peak, self.num_bytes + self.scratch(packet, args, result))
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        elif packet in CPU_ATTENTION:
            self.flops += CPU_ATTENTION[packet](*[getattr(each, "shape", each) for each in args])
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        size = storage.nbytes()
        self.num_bytes += size
        self.peak = max(self.peak, self.num_bytes)
        self._known[address] = weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._known.pop(address, None)
        self.num_bytes -= size
