"""Laws of the autoregressive transformer: likelihoods, caches, windows, orders."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import first_stage

import lit_medgen
from lit_medgen.batch import Condition
from lit_medgen.diffusion.discrete import draw, top_logits
from lit_medgen.errors import InputError
from lit_medgen.methods import VQGAN, Autoregressive
from lit_medgen.methods.code_maps import TransformerSize
from lit_medgen.networks import CausalTransformer, Covariates, Ordering
from lit_medgen.networks.transformer import Cache
from lit_medgen.training.conditional import Conditioning
from lit_medgen.training.latents import encoded

SMALL = TransformerSize(16, 2, 2)
AGED = TransformerSize(16, 2, 2, covariates=Covariates(numbers=["age_years"]))


@pytest.fixture(scope="module")
def vqgan(phantoms: Path) -> VQGAN:
    """Maps of 8 x 8 codes, of 16."""
    return lit_medgen.load(first_stage(phantoms))


def built(vqgan: VQGAN, seed: int = 0, **arguments: Any) -> Autoregressive:
    """A model of random weights, large enough that every code before matters."""
    torch.manual_seed(seed)
    model = Autoregressive("", **{"network": SMALL, **arguments})
    model.spec = vqgan.spec
    model.take_parts(first_stage=vqgan)
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("size", [(3, 5), (4, 4), (2, 3, 4), (4, 4, 4)])
@pytest.mark.parametrize("kind", ["raster", "snake", "hilbert", "random"])
def test_orderings_are_bijections(kind: Any, size: tuple[int, ...]) -> None:
    last = len(size) - 1
    ordering = Ordering(kind, transpose=[last, *range(last)], reflect=[0, last], seed=3)
    if kind == "hilbert" and len(set(size)) > 1:
        with pytest.raises(ValueError, match="sides are one power of two"):
            ordering.positions(size)
        return
    assert sorted(ordering.positions(size).tolist()) == list(range(math.prod(size)))
    assert torch.equal(ordering.positions(size), ordering.positions(size))


@pytest.mark.parametrize(
    ("kind", "size"), [("snake", (3, 5)), ("snake", (3, 4, 5)), ("hilbert", (8, 8)), ("hilbert", (4, 4, 4))]
)
def test_neighbours_in_these_orders_touch(kind: Any, size: tuple[int, ...]) -> None:
    at = torch.stack(torch.unravel_index(Ordering(kind, reflect=[1]).positions(size), size), dim=1)
    assert (at.diff(dim=0).abs().sum(1) == 1).all()


def test_a_transposed_and_reflected_raster() -> None:
    assert Ordering(transpose=(1, 0)).positions((2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert Ordering(reflect=(1,)).positions((2, 3)).tolist() == [2, 1, 0, 5, 4, 3]
    with pytest.raises(ValueError, match="maps have axes 0 to 1"):
        Ordering(transpose=(0, 2)).positions((2, 3))


def test_likelihood_sums_to_one_over_all_maps() -> None:
    torch.manual_seed(0)
    network = CausalTransformer(4, 3, 8, 2, 2).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    every = torch.tensor(list(product(range(3), repeat=4)))
    read = torch.nn.functional.pad(every[:, :-1], (1, 0), value=network.begin)
    logits = network(read, torch.zeros(len(every), dtype=torch.int64))
    nats = logits.log_softmax(-1).gather(-1, every[..., None]).sum((1, 2))
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert nats.std() > 0.1


@pytest.mark.parametrize("network", [SMALL, AGED], ids=["alone", "told ages"])
def test_a_cache_changes_nothing(network: TransformerSize) -> None:
    torch.manual_seed(0)
    model = CausalTransformer(12, 16, **vars(network)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    read = torch.randint(16, (3, 12))
    condition = Condition({"age_years": torch.tensor([0.1, 0.9, torch.nan])})
    whole = model(read, torch.zeros(3, dtype=torch.int64), condition)
    cache, parts, begin = Cache(), [], 0
    for end in (5, 6, 7, 12):
        parts.append(model(read[:, begin:end], torch.full((3,), begin), condition, cache))
        begin = end
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)


def test_no_code_sees_those_after_it() -> None:
    torch.manual_seed(0)
    model = CausalTransformer(8, 16, 16, 2, 2)
    read = torch.randint(16, (1, 8))
    other = read.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 16
    a, b = (model(each, torch.zeros(1, dtype=torch.int64)) for each in (read, other))
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5:], b[:, 5:])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_length": 20, "stride": 7},
        {"network": AGED, "conditioning": Conditioning(guidance_scale=2.0, guidance_interval=(0.0, 0.5))},
    ],
    ids=["whole", "windows", "guided"],
)
def test_cached_sampling_is_that_without_a_cache(arguments: dict[str, Any], vqgan: VQGAN) -> None:
    """Token by token: each is drawn from what the whole window before it says, computed anew."""
    model = built(vqgan, **arguments)
    condition = Condition({"age_years": torch.tensor([50.0, 70.0])})
    *_, codes = model.walk(condition, [3, 4])
    sequence, told = model.sequence(codes), model.scaled(condition)
    uniform = lit_medgen.seeds.SeededNoise([3, 4]).uniform((64,))
    read = model.read(sequence)
    for start, first, end in model.windows():
        for i in range(first, end):
            starts = torch.full((2,), start)
            logits, null = (model.network(read[:, start : i + 1], starts, each)[:, -1] for each in (told, Condition()))
            scale = model.conditioning.scale_at(1 - i / 64)
            expected = draw(null + scale * (logits - null), 1.0, uniform[:, i])
            assert torch.equal(expected, sequence[:, i])


def test_strides_of_one_are_exact_and_longer_ones_see_less(vqgan: VQGAN) -> None:
    exact = built(vqgan, max_length=10)
    codes = torch.randint(16, (2, 8, 8))
    sequence = exact.sequence(codes)
    found = exact.sequence(exact.log_likelihood(codes, Condition()))
    for i in (0, 5, 9, 10, 40, 63):
        start = max(0, i - 9)
        read = exact.read(sequence)[:, start : i + 1]
        logits = exact.network(read, torch.full((2,), start), Condition())[:, -1].log_softmax(-1)
        torch.testing.assert_close(found[:, i], logits.gather(1, sequence[:, i, None])[:, 0], rtol=0, atol=1e-5)
    longer = built(vqgan, max_length=10, stride=4)
    assert torch.equal(longer.sequence(longer.log_likelihood(codes, Condition()))[:, :10], found[:, :10])
    assert [window[1:] for window in longer.windows()][-1] == (62, 64)
    assert sorted(i for _, first, end in longer.windows() for i in range(first, end)) == list(range(64))
    whole = built(vqgan).log_likelihood(codes, Condition())
    assert torch.equal(built(vqgan, max_length=64, stride=9).log_likelihood(codes, Condition()), whole)


def test_surprise_is_the_likelihood_of_the_codes(vqgan: VQGAN) -> None:
    model = built(vqgan)
    images = torch.rand(3, 1, *vqgan.needed_spec().size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    nats = model.log_likelihood(encoded(vqgan, images).long(), Condition()).sum((1, 2))
    bits = model.surprise(images, [0, 1, 2])["bits_per_code"]
    torch.testing.assert_close(bits, -nats / math.log(2) / model.network.length)


def test_a_map_is_its_sequence_again(vqgan: VQGAN) -> None:
    model = built(vqgan, ordering=Ordering("random", seed=5))
    codes = torch.randint(16, (2, 8, 8))
    assert torch.equal(model.map_of(model.sequence(codes)), codes)
    assert not torch.equal(model.sequence(codes), codes.flatten(1))


def test_the_order_is_a_fact_of_the_checkpoint(vqgan: VQGAN) -> None:
    facts = built(vqgan, ordering=Ordering("snake")).facts()
    built(vqgan, ordering=Ordering("snake")).restore(facts)
    with pytest.raises(InputError, match="ordering: another than this model was trained with"):
        built(vqgan).restore(facts)


def test_top_logits() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]]))
    kept = lambda *how: top_logits(logits, *how).isfinite().tolist()  # noqa: E731
    assert kept(2) == [[False, True, True, False], [True, True, False, False]]
    assert kept(None, 0.65) == [[False, True, True, False], [True, True, True, False]]
    assert kept(3, 0.5) == [[False, True, True, False], [True, True, False, False]]
    assert top_logits(logits, 1, 1e-9).argmax(-1).tolist() == [1, 0]
    assert draw(top_logits(logits, 1), 1.0, torch.zeros(2)).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_p": 0}, "top_p is 0"),
        ({"stride": 5, "max_length": 4}, "stride is 5, but max_length is 4"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Autoregressive("", **arguments)


def test_a_sample_depends_on_its_seed_alone(vqgan: VQGAN) -> None:
    model = built(vqgan)
    several = model.sample(Condition(), [7, 8, 9])
    torch.testing.assert_close(model.sample(Condition(), [8])[0], several[1], rtol=0, atol=1e-4)
