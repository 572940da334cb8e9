"""What lossless compressors need of images, as benchmarks.bound counts it, and the radiographs that it counts."""

from __future__ import annotations

import csv
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.bound import begin_at, compressed, encoded
from benchmarks.small_xrays import TABLE, write_xrays
from lit_medgen.batch import Condition
from lit_medgen.diffusion import LinearGamma
from lit_medgen.methods import VDM
from lit_medgen.networks import ScoreResNet


def test_no_compressor_takes_less_than_8_bits_of_random_bytes() -> None:
    """And all take little of images of one grey value, less where 40 of them are one image."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32), dtype=np.uint8)
    for each, together in compressed(noise, 3).values():
        assert each > 8
        assert together is None or 8 < together < each
    for each, together in compressed(np.full_like(noise, 7), 3).values():
        assert each < 1
        assert together is None or together < each / 10


def test_what_is_counted_gives_the_image_back() -> None:
    image = np.random.default_rng(1).integers(0, 256, (8, 16), dtype=np.uint8)
    for kind in ("PNG", "WEBP"):
        found = np.asarray(Image.open(BytesIO(encoded(image, kind, lossless=True))).convert("L"))
        assert np.array_equal(found, image)


@pytest.mark.data
def test_small_radiographs_have_their_rows(tmp_path: Path, shared_data: Path) -> None:
    assert write_xrays(shared_data / "cxr", tmp_path) == 1489
    with (tmp_path / TABLE).open(newline="") as file:
        named = {row["Image Index"] for row in csv.DictReader(file)}
    assert named == {path.name for path in (tmp_path / "images").iterdir()}


def test_a_line_that_begins_later_shows_the_network_the_noise_that_it_knows() -> None:
    told: list[Tensor] = []
    model = VDM(ScoreResNet(2, 1, 8, 1), schedule=(whole := LinearGamma(-12, 4)))
    model.level_network.network.register_forward_hook(lambda _, given, __: told.append(given[1]))
    begin_at(model, -5.0)
    t = torch.linspace(0, 1, 5)
    with torch.no_grad():
        model.level_network.network(torch.zeros(5, 1, 4, 4), model.schedule.level(t.double()).float(), Condition())
    torch.testing.assert_close(whole.log_snr(told[0]), model.schedule.log_snr(t))
    torch.testing.assert_close(model.schedule.log_snr(t[[0, -1]]), torch.tensor([5.0, -4.0]))
