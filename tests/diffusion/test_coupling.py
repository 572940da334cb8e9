"""Coupling by optimal transport: never dearer, both marginals kept, no class crossed."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion import OptimalTransport

NAN = torch.nan


def example(num: int, seed: int, shape: tuple[int, ...] = (2, 3, 3)) -> tuple[Tensor, Tensor]:
    """Images and noise, num *shape, float64."""
    x, eps = torch.randn(2, num, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return 2 * x + 1, eps


def cost(x: Tensor, eps: Tensor) -> float:
    """The summed squared distance of all pairs."""
    return float((x - eps).square().sum())


def positions(coupled: Tensor, eps: Tensor) -> list[int]:
    """Where each coupled noise stood before; fails unless each is one of them, bit for bit."""
    found = [[i for i, before in enumerate(eps) if torch.equal(noise, before)] for noise in coupled]
    assert all(len(one) == 1 for one in found)
    return [one[0] for one in found]


batches = given(
    classes=st.lists(st.integers(-3, 10**12), min_size=1, max_size=20).map(lambda ids: [i % 4 * 10**11 for i in ids]),
    seed=st.integers(0, 1000),
)


@batches
@settings(deadline=None)
def test_coupling_costs_no_more_keeps_both_marginals_and_crosses_no_class(classes: list[int], seed: int) -> None:
    x, eps = example(len(classes), seed)
    ids = torch.tensor(classes)
    within, across = OptimalTransport()(x, eps, ids), OptimalTransport()(x, eps)
    for coupled in (within, across):
        assert sorted(positions(coupled, eps)) == list(range(len(x)))
    assert cost(x, across) <= cost(x, within) + 1e-9
    assert cost(x, within) <= cost(x, eps) + 1e-9
    assert [classes[i] for i in positions(within, eps)] == classes


@pytest.mark.parametrize("seed", range(5))
def test_no_permutation_is_cheaper(seed: int) -> None:
    """All 720 of six images."""
    x, eps = example(6, seed)
    cheapest = min(cost(x, eps[list(order)]) for order in permutations(range(6)))
    assert cost(x, OptimalTransport()(x, eps)) == pytest.approx(cheapest, rel=1e-12)


def test_one_dimension_is_coupled_in_order() -> None:
    """Where the best coupling is known: the smallest noise to the smallest image."""
    x, eps = example(50, 0, shape=(1,))
    coupled = OptimalTransport()(x, eps)
    assert torch.equal(coupled[x.flatten().argsort()], eps[eps.flatten().argsort()])


def test_classes_are_coupled_as_if_alone() -> None:
    x, eps = example(12, 0)
    classes = torch.tensor([0, 1, 2] * 4)
    coupled = OptimalTransport()(x, eps, classes)
    for one in range(3):
        mine = classes == one
        assert torch.equal(coupled[mine], OptimalTransport()(x[mine], eps[mine]))


def test_a_class_for_each_image_changes_nothing() -> None:
    x, eps = example(9, 0)
    assert torch.equal(OptimalTransport()(x, eps, torch.arange(9)), eps)
    assert torch.equal(OptimalTransport()(x[:1], eps[:1]), eps[:1])


def test_noise_stays_normal_within_each_class_only_if_no_class_is_crossed() -> None:
    """Bright and dark images take bright and dark noise if they may, which sampling would never draw."""
    bright = torch.arange(300) % 2
    eps = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    x = bright[:, None].float()
    across, within = OptimalTransport()(x, eps), OptimalTransport()(x, eps, bright)
    assert across[bright == 1].mean() > 0.7
    assert within[bright == 1].mean().abs() < 0.1


def test_half_precision_and_autocast_pair_as_float32_does() -> None:
    x, eps = (each.float() for each in example(16, 0))
    expected = OptimalTransport()(x, eps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(OptimalTransport()(x, eps), expected)
    assert OptimalTransport()(x.bfloat16(), eps.bfloat16()).dtype == torch.bfloat16


def test_numbers_that_are_not_finite_are_left_to_the_guard_of_losses() -> None:
    x, eps = example(5, 0)
    x[1] = NAN
    assert sorted(positions(OptimalTransport()(x, eps), eps)) == [0, 1, 2, 3, 4]


# Classes.


def agree(
    condition: Condition, coupling: OptimalTransport, numbers: tuple[str, ...], others: tuple[str, ...]
) -> set[str]:
    """The classes as sets of image numbers, "0 2" for images 0 and 2."""
    num = len(next(iter(condition.attributes.values())))
    ids = coupling.classes(condition, torch.zeros(num, 1), numbers, others).tolist()
    return {" ".join(str(i) for i, one in enumerate(ids) if one == each) for each in set(ids)}


def test_classes_are_values_bins_and_what_is_unknown() -> None:
    """An edge belongs to the bin above it; unknown is a class of its own, and not the same as the lowest bin."""
    sex = torch.tensor([0.0, 1.0, 0.0, 1.0, NAN, NAN, 0.0])
    age = torch.tensor([49.9, 50.0, 12.0, 69.0, 55.0, 50.0, NAN])
    condition, coupling = Condition({"sex": sex, "age_years": age}), OptimalTransport({"age_years": [50, 70]})
    assert agree(condition, OptimalTransport(), (), ("sex",)) == {"0 2 6", "1 3", "4 5"}
    assert agree(condition, coupling, ("age_years",), ()) == {"0 2", "1 3 4 5", "6"}
    assert agree(condition, coupling, ("age_years",), ("sex",)) == {"0 2", "1 3", "4 5", "6"}


def test_what_the_condition_leaves_out_is_unknown_for_all() -> None:
    condition = Condition({"sex": torch.tensor([0.0, 1.0])})
    assert agree(condition, OptimalTransport({"age_years": [50]}), ("age_years",), ("site",)) == {"0 1"}
    assert OptimalTransport().classes(Condition(), torch.zeros(3, 1), (), ()).tolist() == [0, 0, 0]


def test_continuous_attributes_without_bins_are_refused() -> None:
    condition = Condition({"age_years": torch.tensor([50.0, 51.0])})
    with pytest.raises(
        ValueError, match=r"'age_years' is continuous.*give the edges .* bins: \{age_years: \[low, high\]\}"
    ):
        OptimalTransport().classes(condition, torch.zeros(2, 1), ("age_years",), ())
    with pytest.raises(ValueError, match="bins of 'csf_ml', but the model's continuous attributes are 'age_years'"):
        OptimalTransport({"csf_ml": [1], "age_years": [50]}).check(("age_years",))
    with pytest.raises(ValueError, match="attributes are none"):
        OptimalTransport({"csf_ml": [1]}).check(())
    with pytest.raises(ValueError, match="texts have no classes"):
        OptimalTransport().check((), text=True)
    OptimalTransport({"age_years": [50]}).check(("age_years",))


@pytest.mark.parametrize("edges", [[], [60, 50], [50, 50], [NAN], [float("inf")]])
def test_edges_that_do_not_rise_are_refused(edges: list[float]) -> None:
    with pytest.raises(ValueError, match=r"bins.age_years is .*; give at least one edge, and edges that rise"):
        OptimalTransport({"age_years": edges})
