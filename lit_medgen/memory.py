"""A warning before training if a batch will hardly fit into the memory of the device.

What a step holds cannot be known before it is taken. The estimate is low on purpose, since a false alarm is worse than
none: weights, gradients and Adam's averages, and for every voxel of the batch as many feature maps of the first
convolution's width as networks like ours keep for the backward pass.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

KEPT_MAPS = 50
"""Measured in float32: 78 of the slice U-Net of configs/cdpm.yaml, 42 to 90 of U-Nets, 33 to 43 of autoencoders."""
CHECKPOINTED = 18 / 78
"""The share of it that gradient checkpointing keeps, measured on the same slice U-Net."""
BYTES_PER_PARAMETER = 16
"""Weight, gradient and two averages in float32."""
GIB = 2**30


def batch_warning(model: nn.Module, voxels: int, device: torch.device, num_processes: int = 1) -> str:
    """One line if a step on a batch needs more memory than the device has free; "" if it fits or nothing is known.

    The model is on its device already; all processes that share the device have a batch of so many voxels each.
    """
    free, needed = free_bytes(device), num_processes * needed_bytes(model, voxels)
    if free is None or needed <= free:
        return ""
    return (
        f"warning: a training step needs about {needed / GIB:.1f} GiB or more ({voxels:,} voxels a batch), but "
        f"{free / GIB:.1f} GiB are free on {device}; reduce data.init_args.batch_size, preprocessing.size or the "
        "network's channels, or set its gradient_checkpointing."
    )


def needed_bytes(model: nn.Module, voxels: int) -> int:
    """Bytes of one step, estimated; weights alone if no convolution sees the images."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    width = next((one.out_channels for one in model.modules() if isinstance(one, nn.Conv2d | nn.Conv3d)), 0)
    checkpointed = any(getattr(one, "gradient_checkpointing", False) for one in model.modules())
    maps = KEPT_MAPS * (CHECKPOINTED if checkpointed else 1)
    return int(BYTES_PER_PARAMETER * trained + 4 * width * maps * voxels)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a process can still take on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    limits = [_available(), _left_to_container()]
    return min((known for known in limits if known is not None), default=None)


def _available() -> int | None:
    """What Linux calls available, or all the machine has."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        return os.sysconf(names[0]) * os.sysconf(names[1]) if set(names) <= set(os.sysconf_names) else None


def _left_to_container() -> int | None:
    """What a control group (a container, a SLURM job) has left; what its files fill can be freed."""
    group = Path("/sys/fs/cgroup")
    try:
        facts: dict[str, Any] = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(facts.get("inactive_file", 0))
        return int((group / "memory.max").read_text()) - used
    except (OSError, ValueError):  # no group, or no limit ("max")
        return None
