"""The line before training: the paper's experiment on 24 GB, and no false alarm for those that fit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from tiny_run import ROOT
from torch import nn

from lit_medgen import networks
from lit_medgen.memory import (
    Needs,
    checkpoints,
    first_change,
    free_bytes,
    optimizer_bytes,
    states_per_parameter,
    step_line,
    step_needs,
)

CPU = torch.device("cpu")
GIB = 2**30
PAPERS_VOXELS = 3 * 20 * 128 * 128


def network(*configs: str, name: str = "SliceUNet") -> nn.Module:
    """The network of a shipped experiment."""
    arguments: dict[str, object] = {}
    for config in configs:
        section = yaml.safe_load((ROOT / "configs" / config).read_text())
        arguments |= section["model"]["init_args"]["network"]["init_args"]
    with torch.device("meta"):
        return getattr(networks, name)(**arguments)


def needs_of(model: nn.Module, voxels: int, batch_size: int = 3) -> tuple[Needs, str]:
    """What a step with AdamW and averaged weights holds in float32, and what to change first."""
    weights = sum(4 * each.numel() for each in model.parameters())
    needs = step_needs(model, optimizer=2 * weights, averages=weights, batch=4 * voxels, voxels=voxels)
    return needs, first_change(needs, model, batch_size, "32-true", CPU)


def line_of(model: nn.Module, voxels: int, free: float, num_processes: int = 1) -> str:
    """What is said of such a step where so many GiB are free."""
    needs, change = needs_of(model, voxels)
    return step_line(needs, int(free * GIB), CPU, change, num_processes)


def switch_checkpointing_on(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    return model


def test_the_papers_experiment_on_24_gb_is_warned_of() -> None:
    """Measured: 44 GiB in float32, 17 GiB with checkpointing (benchmarks.memory)."""
    paper = network("cdpm.yaml")
    line = line_of(paper, PAPERS_VOXELS, free=24)
    assert line.startswith("warning: a training step needs about")
    assert "; 24.0 GiB are free on cpu; reduce data.init_args.batch_size (3)" in line
    assert 24 < needs_of(paper, PAPERS_VOXELS)[0].total / GIB < 44
    assert line_of(paper, PAPERS_VOXELS // 3, free=24).startswith("memory: ")
    switch_checkpointing_on(paper)
    assert line_of(paper, PAPERS_VOXELS, free=24).startswith("memory: ")
    assert line_of(paper, PAPERS_VOXELS, free=24, num_processes=4).startswith("warning: ")


@pytest.mark.parametrize(
    ("configs", "name", "voxels"),
    [
        (("cdpm.yaml", "demo/cdpm.yaml"), "FactorPriorSliceUNet", 2 * 20 * 32 * 40),
        (("cdpm.yaml", "demo/cdpm.yaml", "ixi/cdpm.yaml"), "FactorPriorSliceUNet", 2 * 20 * 40 * 48),
        (("vqgan.yaml", "demo/vqgan.yaml"), "Autoencoder", 16 * 32 * 40),
        (("vqgan.yaml",), "Autoencoder", 3 * 176 * 176),
    ],
)
def test_what_fits_a_laptop_is_not_warned_of(configs: tuple[str, ...], name: str, voxels: int) -> None:
    assert line_of(network(*configs, name=name), voxels, free=4).startswith("memory: ")


def test_the_parts_of_a_step_are_what_tensors_hold() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 5).requires_grad_(False))
    needs = step_needs(model, optimizer=7, averages=11, batch=13, voxels=100)
    sizes = [each.nbytes for each in (*model.parameters(), *model.buffers())]
    assert needs.parameters == sum(sizes)
    assert needs.gradients == sum(each.nbytes for each in model.parameters() if each.requires_grad)
    assert needs.total == needs.parameters + needs.gradients + 7 + 11 + 13 + needs.feature_maps
    assert needs.to_come == needs.total - needs.parameters - 11
    halved = step_needs(model, optimizer=7, averages=11, batch=13, voxels=100, halved=True)
    assert halved.feature_maps == needs.feature_maps // 2
    assert step_needs(model, 7, 11, 13, voxels=0).described().endswith("feature maps unknown")


@pytest.mark.parametrize(
    ("make", "states"),
    [
        (partial(torch.optim.AdamW, fused=True), 2),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 1),
        (partial(torch.optim.SGD, lr=0.1), 0),
        (partial(torch.optim.LBFGS, lr=0.1), 2),  # needs a closure, so nothing is known: as Adam
    ],
)
def test_states_of_an_optimizer_are_those_it_has_after_a_step(make: partial, states: int) -> None:
    assert states_per_parameter(make) == states
    parameters = [nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(7))]
    assert optimizer_bytes([make(parameters)], [make]) == states * 4 * 22


def test_the_first_change_is_to_what_holds_most() -> None:
    model = network("cdpm.yaml")
    needs, _ = needs_of(model, PAPERS_VOXELS)
    cuda = torch.device("cuda")
    assert "trainer.precision bf16-mixed" in first_change(needs, model, 1, "32-true", cuda)
    assert "gradient_checkpointing" in first_change(needs, model, 1, "bf16-mixed", cuda)
    assert checkpoints(switch_checkpointing_on(model))
    assert "preprocessing.size" in first_change(needs, model, 1, "bf16-mixed", cuda)
    assert "channels" in first_change(replace(needs, feature_maps=None), model, 3, "32-true", CPU)
    assert checkpoints(nn.Linear(1, 1)) is None


def test_what_is_free_may_be_unknown() -> None:
    needs = Needs(GIB, GIB, 2 * GIB, 0, 0, None)
    line = step_line(needs, None, "mps", "")
    assert line == (
        "memory: a training step needs about 4.00 GiB (parameters 1.00, gradients 1.00, optimizer 2.00, "
        "feature maps unknown), of which 3.00 are still to be taken; what is free on mps is not known"
    )


def test_free_memory_is_that_of_the_machine_or_its_container() -> None:
    free = free_bytes(CPU)
    assert free is not None
    assert 0 < free < 2**50
    assert free_bytes(torch.device("mps")) is None
