"""Crops around nodules, and strips of models that make images from label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data_modules.views import Crop, Grid
from lit_medgen.batch import Condition, DataSpec, Images, Request, Requests
from lit_medgen.evaluation.nodules import Nodules, crop
from lit_medgen.evaluation.strips import NUM_VALUES, strips
from lit_medgen.images.grids import save_strip
from lit_medgen.networks.conditioning import Covariates

SIZE = (80, 72)
SPEC = DataSpec(
    1,
    SIZE,
    (0.7, 0.7),
    classes=("air", "lung", "nodule, benign", "nodule, malignant"),
    attributes={"malignant": (0.0, 1.0), "texture": (1.0, 5.0)},
    codes=("malignant",),
)


def maps(boxes: Sequence[tuple[int, int, int, int, int] | None]) -> Requests:
    """Requests of maps with a box (class, x, y, width, height) in each."""
    every = torch.zeros(len(boxes), 1, 1, *SIZE, dtype=torch.int64)
    for label_map, box in zip(every, boxes, strict=True):
        if box:
            number, x, y, w, h = box
            label_map[..., x : x + w, y : y + h] = number
    rows = [{"key": f"test {i}"} for i in range(len(boxes))]
    parts = frozenset({"label_map"})
    return Requests(range(len(boxes)), rows, parts, lambda i: Request([i], Condition(label_map=every[i])))


@pytest.mark.parametrize("middle", [(0.0, 0.0), (39.5, 36.0), (79.0, 71.0), (10.25, 70.5), (60.0, 3.0)])
@pytest.mark.parametrize("size", [(64, 64), (31, 8), (100, 90)])
def test_crops_are_those_of_the_view(middle: tuple[float, float], size: tuple[int, int]) -> None:
    """The same pixels as `data_modules.Crop` shows, on which judges are trained."""
    image = torch.arange(80.0 * 72).view(1, *SIZE)
    view, grid = Crop(size), Grid(SIZE, "")
    expected = view.read(lambda _: image[0].numpy(), grid, view._around(np.array(middle)), -1.0)
    np.testing.assert_array_equal(crop(image, middle, size)[0], expected)


def test_nodules_are_found_where_they_are() -> None:
    requests = maps([(2, 10, 20, 3, 5), None, (3, 70, 60, 4, 4)])
    found = Nodules.of(requests, SPEC)
    assert found.middles == {0: (11.0, 22.0), 2: (71.5, 61.5)}
    assert found.classes == {0: 2, 2: 3}
    assert found.size == (64, 64)
    images = torch.randn(4, 1, *SIZE)
    crops = found.cropped(Images.of(images, ["a", "b", "c", "d"]), [2, 1, None, 0])
    assert crops.people == ["a", "d"]
    torch.testing.assert_close(
        crops.all(), torch.stack([crop(images[i], found.middles[j], (64, 64)) for i, j in ((0, 2), (3, 0))])
    )
    assert not Nodules.of(requests, DataSpec(1, SIZE, (1, 1), classes=("air", "lung"))).middles


def test_attributes_are_shown_on_maps_with_a_nodule(tmp_path: Path) -> None:
    """One seed, the same two maps for every attribute, all others unknown; crops below."""
    requests = maps([None, (2, 10, 20, 3, 5), (3, 70, 60, 4, 4), (3, 20, 60, 4, 4)])
    asked: list[Request] = []

    def show(requests: Requests) -> list[Tensor]:
        some = list(requests.batches(3))
        asked.extend(some)
        return [
            torch.stack([part.float() / 4 for part in request.condition.label_map])
            for request in some
            if request.condition.label_map is not None
        ]

    found = strips(show, list(SPEC.attributes), SPEC, Covariates(("malignant", "texture")), requests)
    assert {seed for request in asked for seed in request.seeds} == {0}
    assert all(len(request.condition.attributes) == 1 for request in asked)
    assert found["malignant"].values == [0, 1]
    assert [tuple(row.shape) for row in found["texture"].rows] == [
        (NUM_VALUES, 1, *size) for size in (SIZE, (64, 64)) * 2
    ]
    for strip in found.values():
        assert [int(row.max() * 4) for row in strip.rows] == [2, 2, 3, 3]
    save_strip(tmp_path / "strip.png", found["texture"].rows, "texture", found["texture"].values)
    without = strips(show, ["malignant"], SPEC, Covariates(("malignant",)), maps([None, None, None]))
    assert [tuple(row.shape) for row in without["malignant"].rows] == [(2, 1, *SIZE)] * 2
