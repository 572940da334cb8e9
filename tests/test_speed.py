"""`trainer.speed` and its neighbours: one decision for all methods, one switch each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import ROOT, TinyRun
from torch import nn

from lit_medgen.methods import CDPM, VQGAN
from lit_medgen.networks import Autoencoder, SliceUNet
from lit_medgen.speed import Speed
from lit_medgen.trainer import Trainer


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(kept[0])
    torch.backends.cudnn.allow_tf32 = kept[1]


def vqgan() -> VQGAN:
    return VQGAN(Autoencoder(2, 1, 4, (8,), (False,), 1, 8))


@pytest.mark.parametrize("on", [False, True])
def test_every_switch_does_what_it_says(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda network: compiled.append(network))
    method = vqgan()
    Speed(tf32=on, channels_last=on, compile=on).prepare(method.networks_for_speed())
    assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
    assert torch.backends.cudnn.allow_tf32 == on
    weight = method.network.encoder[1].conv1.weight  # type: ignore[index,union-attr]
    assert weight.is_contiguous(memory_format=torch.channels_last) == on
    assert compiled == (method.networks_for_speed() if on else [])


def test_every_method_names_its_networks() -> None:
    cdpm = CDPM(SliceUNet((8,), (False,), (False,), 1, 8))
    assert cdpm.networks_for_speed() == [cdpm.denoiser.network]
    assert len(vqgan().networks_for_speed()) == 3


def test_the_command_line_has_the_switches(tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Speed] = []
    monkeypatch.setattr(Speed, "prepare", lambda speed, networks: prepared.append(speed))
    assert TinyRun(tmp_path, phantoms).fit("--trainer.speed.compile=true", "--trainer.max_steps=1") == 0
    assert prepared == [Speed(compile=True)]
    assert Trainer(logger=False).speed == Speed()


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_shipped_optimizers_are_fused(path: Path) -> None:
    arguments = yaml.safe_load(path.read_text())["model"]["init_args"]
    optimizers = [arguments[name] for name in ("optimizer", "discriminator_optimizer") if name in arguments]
    assert optimizers
    assert all(optimizer["init_args"]["fused"] is True for optimizer in optimizers)
