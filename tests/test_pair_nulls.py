"""Nulls of pairs: what a report says that the mean training image, and the source itself, would have scored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_medgen.batch import Condition, DataSpec, Images, Request, Requests
from lit_medgen.callbacks.report import sources_of
from lit_medgen.evaluation.figures import rows_of
from lit_medgen.evaluation.held import Sets
from lit_medgen.evaluation.pair_nulls import MEAN, SOURCE, PairNulls
from lit_medgen.evaluation.scores import Given, of_pairs
from lit_medgen.metrics.known import Known

PEOPLE = ["a", "b", "c", "c"]
KEYS = ["k0", "k1", "k2", "k3"]
SPEC = DataSpec(1, (12, 12), (1.0, 1.0), sources=("flair",), source_size=(12, 12))


@pytest.fixture
def real() -> Tensor:
    return torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0)) - 0.5


def source(images: Tensor, index: int) -> Tensor | None:
    """Brighter by 0.2; that of the second image is missing."""
    return None if index == 1 else images[[index]] + 0.2


def test_nulls_are_scored_beside_the_samples(real: Tensor) -> None:
    """By hand; a null counts for the pairs that it has an image for."""
    train = torch.rand(5, 1, 12, 12) - 0.5
    nulls = PairNulls(Images.of(train), source=lambda index: source(real, index))
    targets = [3, 1, 0, None, 2]
    samples = real[[3, 1, 0, 0, 2]] + 0.1
    rows, _ = of_pairs(
        Images.of(samples), Images.of(real, PEOPLE), targets, Given(Known(), Images.of(train), train, nulls=nulls)
    )
    mae = rows["mae"]
    assert mae["value"] == pytest.approx(0.05)
    assert mae["baselines"][SOURCE]["value"] == pytest.approx(0.1)
    assert mae["baselines"][SOURCE]["num_pairs"] == 3
    assert mae["baselines"][MEAN]["value"] == pytest.approx((real - train.mean(0)).abs().mean().item() / 2)
    assert mae["baselines"][MEAN]["num_pairs"] == 4
    low, high = mae["baselines"][MEAN]["ci95"]
    assert low < mae["baselines"][MEAN]["value"] < high
    assert rows["psnr"]["baselines"][SOURCE]["value"] == pytest.approx(10 * torch.tensor(4 / 0.04).log10().item())


def test_without_sources_of_that_kind_the_mean_is_the_one_null(real: Tensor) -> None:
    rows, _ = of_pairs(Images.of(real), Images.of(real, PEOPLE), range(4), Given(Known(), Images.of(real), real))
    assert {*rows["mae"]["baselines"]} == {MEAN}


def test_a_figure_shows_the_sources_where_all_are_there(real: Tensor) -> None:
    nulls = PairNulls(Images.of(real), source=lambda index: source(real, index))
    images = Images.of(real, PEOPLE)
    shown = rows_of(Sets(Images.of(real[[2, 0]]), images, images), [0, 0], [2, 0], {}, nulls)
    assert torch.equal(shown[SOURCE], real[[2, 0]] + 0.2)
    assert SOURCE not in rows_of(Sets(Images.of(real[[1, 0]]), images, images), [0, 0], [1, 0], {}, nulls)


class Data:
    """Test images, and requests with their sources in another order."""

    def __init__(self, real: Tensor, spec: DataSpec) -> None:
        self.real, self.spec, self.order = real, spec, [2, 0, 3, 1]

    def images(self, split: str, one_per_person: bool = False, limit: int | None = None) -> Images:
        return Images(KEYS, PEOPLE, lambda some: self.real[list(some)])

    def requests(self, split: str, num: int | None = None) -> Requests:
        def read(number: int) -> Request:
            found = source(self.real, self.order[number])
            return Request([number], Condition(source=found))

        rows = [{"key": KEYS[index]} for index in self.order]
        return Requests(range(4), rows, frozenset({"source"}), read)


def model(**facts: Any) -> Any:
    return SimpleNamespace(**{"reconstructs": False, "required": ("source",), "optional": ()} | facts)


def test_the_source_of_a_test_image_is_found_by_its_key(real: Tensor) -> None:
    found = sources_of(model(), Data(real, SPEC))  # type: ignore[arg-type]
    assert found is not None
    for index in (0, 2, 3):
        assert torch.equal(found(index), source(real, index))  # type: ignore[arg-type]
    assert found(1) is None


@pytest.mark.parametrize(
    ("of_model", "of_data"),
    [
        ({"reconstructs": True}, {}),
        ({"required": ()}, {}),
        ({}, {"source_size": (6, 6)}),
        ({}, {"sources": ("a", "b")}),
    ],
)
def test_no_source_stands_for_an_image_of_another_kind(
    real: Tensor, of_model: dict[str, Any], of_data: dict[str, Any]
) -> None:
    spec = DataSpec(**vars(SPEC) | of_data)
    assert sources_of(model(**of_model), Data(real, spec)) is None  # type: ignore[arg-type]
