"""Two contrasts of UK Biobank, and colour pictures: fitted, resumed, sampled and evaluated from the command line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_run import one_line

from lit_medgen.__main__ import main
from lit_medgen.axes import COLOURS
from lit_medgen.checkpoints import FACTS
from lit_medgen.images import read_image
from lit_medgen.images.nifti import nifti_bytes

MEMBERS = {20252: "T1/T1_unbiased_brain.nii.gz", 20253: "T2_FLAIR/T2_FLAIR_unbiased_brain.nii.gz"}


def write_ukbiobank(root: Path, num: int = 9) -> dict[str, str]:
    """Small bulk zips of T1 and FLAIR of so many people, the last without FLAIR; arguments of the data module."""
    root.mkdir()
    for person in range(num):
        for field, member in list(MEMBERS.items())[: 1 if person == num - 1 else 2]:
            voxels = np.zeros((16, 16, 16), np.float32)
            voxels[3:13, 3:13, 3:13] = np.random.default_rng([person, field]).integers(60, 200, (10, 10, 10))
            with zipfile.ZipFile(root / f"{1000223 + person}_{field}_2_0.zip", "w") as archive:
                archive.writestr(member, nifti_bytes(voxels, np.diag([4.0, 4, 4, 1]), compressed=True))
    (root / "withdrawals.txt").write_text("")
    return {"root": str(root), "withdrawals": str(root / "withdrawals.txt")}


def write_config(path: Path, data: dict[str, Any], network: dict[str, Any], **model: Any) -> str:
    """An overlay of a data module, of arguments of the network, and of others of the method."""
    sections = {"data": data, "model": {"init_args": {"network": {"init_args": network}, **model}}}
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def run(folder: Path, base: str, overlay: str, channels: tuple[str, ...], *more: str) -> tuple[Path, Path]:
    """Fits two steps, resumes for a third, samples and evaluates; the checkpoint and the folder of samples."""
    files = [f"configs/{base}.yaml", "tests/tiny/any.yaml", f"tests/tiny/{base}.yaml", overlay]
    line = ["fit", *(word for name in files for word in ("--config", name)), f"--trainer.default_root_dir={folder}"]
    assert main([*line]) == 0
    assert main([*line, "--ckpt_path=last", "--trainer.max_steps=3"]) == 0
    last, out, on_cpu = folder / base / "checkpoints" / "last.ckpt", folder / "samples", "--trainer.accelerator=cpu"
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["global_step"] == 3
    assert tuple(checkpoint[FACTS]["spec"]["channel_names"]) == channels
    assert main(["sample", f"--ckpt_path={last}", "--num=3", f"--out={out}", on_cpu, *more]) == 0
    report = folder / "report"
    assert main(["evaluate", f"--samples={out}", "--features=none", f"--out={report}", on_cpu]) == 0
    assert json.loads((report / "report.json").read_text())["verdict"]
    return last, out


def test_two_contrasts_from_zips_to_a_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = two_contrasts(tmp_path)
    network = {"in_channels": 2, "out_channels": 2}
    overlay = write_config(tmp_path / "mine.yaml", data, network)
    _, samples = run(tmp_path, "ddpm", overlay, ("t1", "flair"))
    voxels, _ = read_image(samples / "sample_00000000.nii.gz", channels=2)
    assert voxels.shape == (2, 16, 16, 16)
    (rejected,) = (tmp_path / "store").glob("*/rejected.csv")
    assert "1 channel; expected 2 (t1, flair), or one channel with flair beside it" in rejected.read_text()
    capfd.readouterr()
    wrong = write_config(tmp_path / "wrong.yaml", data, {})
    files = ["configs/ddpm.yaml", "tests/tiny/any.yaml", "tests/tiny/ddpm.yaml", wrong]
    line = ["fit", *(word for name in files for word in ("--config", name)), f"--trainer.default_root_dir={tmp_path}/b"]
    assert main(line) == 2
    assert "model.init_args.network.init_args.in_channels is 1, but images have 3 axes and 2 channels; give 2" in (
        one_line(capfd)
    )


CONTRASTS = ("t1", "flair")
OF_BOTH = {"in_channels": 2}
DISCRIMINATOR: dict[str, Any] = {"discriminator": {"init_args": OF_BOTH}}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cdpm": ({"image_channels": 2}, {}),
    "vqgan": (OF_BOTH, DISCRIMINATOR),
    "wgan": (OF_BOTH, {}),
}
"""Base config -> arguments of its network, and of the method, for images of two channels."""


def two_contrasts(folder: Path) -> dict[str, Any]:
    """The data section of small people of T1 and FLAIR."""
    options = write_ukbiobank(folder / "bulk") | {
        "preprocessing": {"size": [16, 16, 16], "field_of_view_mm": [64, 64, 64], "channels": list(CONTRASTS)},
        "store_dir": str(folder / "store"),
    }
    return {"class_path": "data_modules.UKBiobankDataModule", "init_args": options}


def saw_both(samples: Path, axes: int) -> None:
    """Every sample has two channels that differ."""
    paths = sorted(samples.glob("*_0000000*"))
    assert len(paths) == 3
    for path in paths:
        if path.is_dir():  # a PNG for each channel
            voxels = np.stack([read_image(path / f"{name}.png")[0] for name in CONTRASTS])
        else:
            voxels, _ = read_image(path, channels=2)
        assert voxels.ndim == axes + 1
        assert not np.array_equal(voxels[0], voxels[1])


@pytest.mark.slow
@pytest.mark.parametrize("base", METHODS)
def test_methods_of_two_contrasts_from_zips_to_a_report(base: str, tmp_path: Path) -> None:
    network, model = METHODS[base]
    overlay = write_config(tmp_path / "mine.yaml", two_contrasts(tmp_path), network, **model)
    _, samples = run(tmp_path, base, overlay, CONTRASTS)
    saw_both(samples, 2 if base == "vqgan" else 3)


@pytest.mark.slow
def test_latent_diffusion_of_two_contrasts_from_zips_to_a_report(tmp_path: Path) -> None:
    data = two_contrasts(tmp_path)
    first = write_config(tmp_path / "first.yaml", data, OF_BOTH, **DISCRIMINATOR)
    last, _ = run(tmp_path, "autoencoder_kl", first, CONTRASTS)
    second = write_config(tmp_path / "second.yaml", data, {"covariates": None}, first_stage=str(last))
    _, samples = run(tmp_path / "ldm", "ldm", second, CONTRASTS)
    saw_both(samples, 3)


def test_colour_pictures_to_a_report(tmp_path: Path) -> None:
    assert main(["phantom", "retinas", f"--out={tmp_path / 'eyes'}", "--num_subjects=6"]) == 0
    options = {
        "root": str(tmp_path / "eyes"),
        "pattern": "*.png",
        "table": "participants.tsv",
        "preprocessing": {
            "size": [16, 16],
            "field_of_view_mm": [64, 64],
            "centre": "grid",
            "intensity": "window",
            "window": [0, 255],
            "channels": list(COLOURS),
        },
        "view": None,
        "store_dir": str(tmp_path / "store"),
    }
    data = {"class_path": "data_modules.FolderDataModule", "init_args": options}
    overlay = write_config(tmp_path / "mine.yaml", data, {"in_channels": 3, "out_channels": 3})
    _, samples = run(tmp_path, "ddpm_2d", overlay, COLOURS)
    for path in (samples / "sample_00000000.png", tmp_path / "ddpm_2d" / "grids" / "step_0000002.png"):
        pixels, _ = read_image(path, channels=3)
        assert pixels.shape[0] == 3
        assert not np.array_equal(pixels[0], pixels[1])
