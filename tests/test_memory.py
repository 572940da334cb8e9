"""The warning before training: the paper's experiment on 24 GB, and no false alarm for those that fit."""

from __future__ import annotations

import pytest
import torch
import yaml
from tiny_run import ROOT
from torch import nn

from lit_medgen import memory, networks
from lit_medgen.memory import batch_warning, free_bytes, needed_bytes

CPU = torch.device("cpu")


def network(*configs: str, name: str = "SliceUNet") -> nn.Module:
    """The network of a shipped experiment."""
    arguments: dict[str, object] = {}
    for config in configs:
        section = yaml.safe_load((ROOT / "configs" / config).read_text())
        arguments |= section["model"]["init_args"]["network"]["init_args"]
    with torch.device("meta"):
        return getattr(networks, name)(**arguments)


def test_the_papers_experiment_on_24_gb_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: 44 GiB in float32, 17 GiB with checkpointing (benchmarks.memory)."""
    paper, voxels = network("cdpm.yaml"), 3 * 20 * 128 * 128
    monkeypatch.setattr(memory, "free_bytes", lambda _: 24 * 2**30)
    line = batch_warning(paper, voxels, CPU)
    assert line.startswith("warning: a training step needs about")
    assert "24.0 GiB are free on cpu" in line
    assert "data.init_args.batch_size" in line
    assert 24 < needed_bytes(paper, voxels) / 2**30 < 44
    assert batch_warning(paper, voxels // 3, CPU) == ""
    for module in paper.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    assert batch_warning(paper, voxels, CPU) == ""
    assert batch_warning(paper, voxels, CPU, num_processes=4)


@pytest.mark.parametrize(
    ("configs", "name", "voxels"),
    [
        (("cdpm.yaml", "demo/cdpm.yaml"), "FactorPriorSliceUNet", 2 * 20 * 32 * 40),
        (("cdpm.yaml", "demo/cdpm.yaml", "ixi/cdpm.yaml"), "FactorPriorSliceUNet", 2 * 20 * 40 * 48),
        (("vqgan.yaml", "demo/vqgan.yaml"), "Autoencoder", 16 * 32 * 40),
        (("vqgan.yaml",), "Autoencoder", 3 * 176 * 176),
    ],
)
def test_what_fits_a_laptop_is_not_warned_of(
    configs: tuple[str, ...], name: str, voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: 4 * 2**30)
    assert batch_warning(network(*configs, name=name), voxels, CPU) == ""


def test_free_memory_is_that_of_the_machine_or_its_container() -> None:
    free = free_bytes(CPU)
    assert free is not None
    assert 0 < free < 2**50
    assert free_bytes(torch.device("mps")) is None
