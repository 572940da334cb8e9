"""How a run uses its GPU: decided here once for all methods, with a switch each, `trainer.speed.<name>`.

Two more switches have their usual places. `trainer.benchmark` lets cuDNN try its algorithms and take the fastest: off,
since its choice differs between runs, and a resumed run must go on bit for bit. `fused: true` of an optimizer does its
step in one kernel: on in every shipped config and in the default optimizer.

None of the five was measured on a GPU: there was none. Measure before turning one on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Speed:
    """Switches of how a run uses its device.

    Attributes:
        tf32: products in float32 with 10 bits of mantissa on NVIDIA GPUs. Off: what is computed in float32 under
            bf16-mixed, and every score, is meant to be exact.
        channels_last: weights of convolutions with channels last. Off: GroupNorm undoes the layout, so that every block
            would copy.
        compile: networks by torch.compile, which takes minutes before the first step.
    """

    tf32: bool = False
    channels_last: bool = False
    compile: bool = False

    def prepare(self, networks: Iterable[nn.Module]) -> None:
        """Sets what is global, and prepares the networks, each called as a function, in place."""
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        for network in networks:
            if self.channels_last:
                for parameter in network.parameters():
                    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.ndim)
                    if layout is not None:
                        parameter.data = parameter.data.contiguous(memory_format=layout)
            if self.compile:
                network.compile()
