"""Phantom radiographs: ChestX-ray14's layout, read by its own data module; findings change what is in their box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules import ChestXrayDataModule
from data_modules.phantoms.chest_findings import ACUTE, cardiomegaly
from data_modules.phantoms.radiographs import (
    GRID,
    WATER,
    Body,
    Exposure,
    _attenuation,
    _projected,
    axes,
    make_body,
    take,
)
from data_modules.splits import SPLITS
from lit_medgen.__main__ import main

EXPOSURE = Exposure("PA", 330.0, (0.0, 0.0), 1)
SIZE = 64


@pytest.fixture(scope="module")
def body() -> Body:
    return make_body(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nih")
    assert main(["phantom", "chestxray", "--out", str(folder), "--num_subjects", "5", "--size", "64"]) == 0
    return folder


def test_the_data_module_reads_them(folder: Path, tmp_path: Path) -> None:
    data = ChestXrayDataModule(str(folder), size=(32, 32), store_dir=str(tmp_path), num_jobs=1)
    accepted, rejected = data.prepare()
    data.setup("fit")
    files = list(folder.rglob("*.png"))
    assert (len(accepted), rejected) == (len(files), [])
    assert len({record.person for record in accepted}) == 5
    modes = set()
    for path in files:
        with Image.open(path) as image:
            modes.add(image.mode)
    assert modes == {"L", "RGBA"}
    with_finding = [record for record in accepted if not record.attributes["no_finding"]]
    assert any(data.boxes_of(record) for record in with_finding)
    assert len(set(data.people("test").values())) == 1
    assert not set(data.people("test").values()) & set(data.people("train").values())
    assert sum(len(data.people(split)) for split in SPLITS) == len(files)


def test_a_cohort_is_a_function_of_its_seed(tmp_path: Path) -> None:
    found = {}
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        words = ["--out", str(tmp_path / name), "--num_subjects", "1", "--size", "32", "--seed", seed]
        assert main(["phantom", "chestxray", *words]) == 0
        found[name] = {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*") if path.is_file()}
    assert found["a"] == found["b"]
    assert found["a"] != found["c"]


@pytest.mark.parametrize("label", sorted(ACUTE))
def test_a_finding_is_seen_in_its_box(label: str, body: Body) -> None:
    finding = ACUTE[label](body, np.random.default_rng(5))
    healthy, ill = take(body, EXPOSURE, [], SIZE), take(body, EXPOSURE, [finding], SIZE)
    places, _ = EXPOSURE.seen(finding.corners)
    low, high = ((f(places, 0) * SIZE).clip(0, SIZE) for f in (np.min, np.max))
    inside = np.zeros((SIZE, SIZE), bool)
    inside[int(low[1]) : int(np.ceil(high[1])) + 1, int(low[0]) : int(np.ceil(high[0])) + 1] = True
    change = np.abs(ill - healthy)
    assert change[inside].mean() > 2 * change[~inside].mean()
    assert change[inside].max() > 0.02


def test_a_large_heart_is_more_than_half_as_wide_as_the_chest(body: Body) -> None:
    """The cardiothoracic ratio, from the box of the heart and the volume of the cavity."""
    x = body.axes[2]
    inside = x[(body.lungs < 0).any((0, 1))]
    widths = [np.ptp(cardiomegaly(size).corners[:, 0]) / np.ptp(inside) for size in (1.0, 1.3)]
    assert widths[0] < 0.52 < widths[1]
    small, large = (take(make_body(3, size), EXPOSURE, [], SIZE) for size in (1.0, 1.3))
    assert large[20:44].mean() > small[20:44].mean()


def test_rays_obey_beer_and_lambert() -> None:
    """A layer that is denser by a known length adds that length of attenuation, magnified to where it lies."""
    hu = np.full(GRID, -1000.0, np.float32)
    _, y, x = axes()
    hu[:, 30:36, np.abs(x) < 50] = 0.0
    lengths = _projected(_attenuation(hu), EXPOSURE, SIZE)
    wide = (np.abs(x) < 50).sum() * float(x[1] - x[0])
    thick = 6 * float(y[1] - y[0])
    assert lengths.max() == pytest.approx(WATER * thick, rel=1e-3)
    m = float(EXPOSURE.magnification(y[30:36]).mean())
    assert lengths[SIZE // 2].sum() * 330 / SIZE == pytest.approx(WATER * thick * wide * m, rel=0.02)
    near, far = (Exposure(view, 330.0, (0, 0), 0).magnification(np.array([-28.0]))[0] for view in ("PA", "AP"))
    assert far > near  # the heart of an AP image is larger
