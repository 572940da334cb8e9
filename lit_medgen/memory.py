"""What a training step holds and what the device has free, in a line before the first step.

Weights, gradients, the optimizer's averages, the averaged weights and the batch are counted. Feature maps cannot be
known before a step is taken, so their share is estimated low on purpose, since a false alarm is worse than none: for
every voxel of the batch as many maps of the first convolution's width as networks like ours keep for the backward
pass. `python -m lit_medgen estimate` says it exactly, and takes longer than a run should wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_medgen.batch import DataSpec

KEPT_MAPS = 50
"""Measured in float32: 78 of the slice U-Net of configs/cdpm.yaml, 42 to 90 of U-Nets, 33 to 43 of autoencoders."""
CHECKPOINTED = 18 / 78
"""The share of it that gradient checkpointing keeps, measured on the same slice U-Net."""
HALVED = 0.5
"""The share of it under bf16-mixed, at least: two bytes a value; what is normalised is kept in float32 as well."""
OPTIMIZER_STATES = 2
"""Values per parameter that an optimizer keeps if a trial step of it is not possible: those of Adam."""
GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """Bytes of what a training step holds on its device.

    Attributes:
        parameters: weights and buffers, frozen ones included.
        gradients: of the trained weights.
        optimizer: what the optimizers keep from step to step.
        averages: the weights that `EMA` averages.
        batch: the images of a batch and what they are made from.
        feature_maps: kept for the backward pass, at least; None where nothing is known of them.
    """

    parameters: int
    gradients: int
    optimizer: int
    averages: int
    batch: int
    feature_maps: int | None

    @property
    def total(self) -> int:
        """All that is known of."""
        return sum(value or 0 for value in asdict(self).values())

    @property
    def to_come(self) -> int:
        """What is not there yet before the first step: weights and their averages are."""
        return self.total - self.parameters - self.averages

    def described(self) -> str:
        """The parts with their sizes, in GiB."""
        words = {name.replace("_", " "): value for name, value in asdict(self).items()}
        lower = {"feature maps": " or more"}
        return ", ".join(
            f"{name} unknown" if value is None else f"{name} {in_gib(value)}{lower.get(name, '')}"
            for name, value in words.items()
            if value != 0
        )


def in_gib(num_bytes: int) -> str:
    """Bytes in GiB with two digits behind the point, one from 10 GiB on."""
    return f"{num_bytes / GIB:.{1 if num_bytes >= 10 * GIB else 2}f}"


def step_needs(
    model: nn.Module,
    optimizer: int,
    averages: int,
    batch: int,
    voxels: int,
    halved: bool = False,
) -> Needs:
    """What a step of a model holds.

    Args:
        model: the model, complete.
        optimizer: bytes of the optimizers' states, from `optimizer_bytes`.
        averages: bytes of the averaged weights.
        batch: bytes of a batch.
        voxels: of all images of a batch; 0 if nothing is known of what the network sees.
        halved: whether the network computes in half precision, as under bf16-mixed.
    """
    values = {each: each.nbytes for each in [*model.parameters(), *model.buffers()]}
    gradients = sum(size for each, size in values.items() if each.requires_grad)
    width = next((one.out_channels for one in model.modules() if isinstance(one, nn.Conv2d | nn.Conv3d)), 0)
    maps = KEPT_MAPS * (CHECKPOINTED if checkpoints(model) else 1) * (HALVED if halved else 1)
    known = int(4 * width * maps * voxels) or None
    return Needs(sum(values.values()), gradients, optimizer, averages, batch, known)


def bytes_per_voxel(spec: DataSpec) -> int:
    """Bytes of a batch for each voxel of its images: float32 channels, and 64 bits of a label map's class."""
    return 4 * (spec.channels + len(spec.sources)) + 8 * bool(spec.classes)


def checkpoints(model: nn.Module) -> bool | None:
    """Whether a network of the model checkpoints its gradients; None if none of them can."""
    switches = [one.gradient_checkpointing for one in model.modules() if hasattr(one, "gradient_checkpointing")]
    return any(switches) if switches else None


def optimizer_bytes(
    optimizers: Sequence[torch.optim.Optimizer], makers: Sequence[Callable[[list[nn.Parameter]], torch.optim.Optimizer]]
) -> int:
    """Bytes of the states of optimizers after their first step, told from a step of each on one small matrix.

    Args:
        optimizers: with their parameters.
        makers: what makes each of them from parameters; if they are not as many, each counts as Adam.
    """
    known = len(makers) == len(optimizers)
    states = [states_per_parameter(make) for make in makers] if known else [OPTIMIZER_STATES] * len(optimizers)
    total = 0.0
    for optimizer, num in zip(optimizers, states, strict=True):
        total += num * sum(each.nbytes for group in optimizer.param_groups for each in group["params"])
    return int(total)


def states_per_parameter(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> float:
    """Values that an optimizer keeps for each value of a parameter: 2 of Adam, 0 of plain gradient descent."""
    trial = nn.Parameter(torch.zeros(32, 32))
    trial.grad = torch.ones_like(trial)
    try:
        optimizer = make([trial])
        optimizer.step()
    except Exception:  # one that needs a closure, say; an estimate must not stop a run, whatever is wrong
        return OPTIMIZER_STATES
    kept = (each for state in optimizer.state.values() for each in state.values() if isinstance(each, torch.Tensor))
    return sum(each.numel() for each in kept if each.numel() > 1) / trial.numel()


def step_line(
    needs: Needs, free: int | None, device: torch.device | str, first_change: str, num_processes: int = 1
) -> str:
    """A line that says what a step needs and what is free, and what to change first if that is less.

    Args:
        needs: of one process.
        free: bytes; None if the system does not say.
        device: where.
        first_change: what to do if it does not fit.
        num_processes: that share the device and have a batch each.
    """
    num, to_come = num_processes, num_processes * needs.to_come
    what = f"a training step needs about {in_gib(num * needs.total)} GiB" + (f" in {num} processes" if num > 1 else "")
    what += f" ({needs.described()}{' each' if num > 1 else ''}), of which {in_gib(to_come)} are still to be taken"
    if free is None:
        return f"memory: {what}; what is free on {device} is not known"
    what += f"; {in_gib(free)} GiB are free on {device}"
    return f"memory: {what}" if to_come <= free else f"warning: {what}; {first_change}."


def first_change(needs: Needs, model: nn.Module, batch_size: int, precision: str, device: torch.device) -> str:
    """The first thing to change about a step that does not fit into memory."""
    growing = needs.batch + (needs.feature_maps or 0)
    if growing < needs.total / 2:
        return "give the network fewer channels"
    if batch_size > 1:
        return (
            f"reduce data.init_args.batch_size ({batch_size}); trainer.accumulate_grad_batches keeps what a step sees"
        )
    if precision == "32-true" and device.type == "cuda":
        return "give trainer.precision bf16-mixed"
    if checkpoints(model) is False:
        return "set the network's gradient_checkpointing"
    return "reduce data.init_args.preprocessing.size or the network's channels"


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
