"""The semantic U-Net: what its label map does, at every size, and parity of its modulation with MONAI's SPADE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.blocks.spade_norm import SPADE
from test_unet import randomise
from torch import Tensor, nn
from torch.testing import assert_close

from lit_medgen.batch import ABSENT_CLASS, Condition
from lit_medgen.export.torchscript import trace
from lit_medgen.networks import Covariates, SemanticUNet, UNet
from lit_medgen.networks.blocks import group_norm
from lit_medgen.networks.semantic_unet import Modulation, SemanticBlock, one_hot

K = 4
each_dim = pytest.mark.parametrize("dim", [2, 3])


def semantic(dim: int = 2, **arguments: Any) -> SemanticUNet:
    """Two levels, attention in the second, with weights that let everything be heard."""
    sizes: dict[str, Any] = {"channels": (8, 16), "attention": (False, True), "num_res_blocks": 1, "head_channels": 8}
    torch.manual_seed(0)
    network = SemanticUNet(**{"dim": dim, "num_classes": K, "modulation_channels": 6} | sizes | arguments)
    randomise(network, 0.2)
    return network


def noisy(dim: int = 2, size: tuple[int, ...] = (8, 4, 6)) -> tuple[Tensor, Tensor]:
    """x: 3 1 *s and t: 3."""
    x = torch.randn(3, 1, *size[:dim], generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.1, 0.5, 0.8])


def classes(dim: int = 2, size: tuple[int, ...] = (16, 8, 12)) -> Tensor:
    """3 1 *s, random classes."""
    return torch.randint(0, K, (3, 1, *size[:dim]), generator=torch.Generator().manual_seed(1))


def test_a_class_is_a_channel_and_what_is_none_is_zero() -> None:
    found = one_hot(torch.tensor([[[[0, 2], [ABSENT_CLASS, 1]]]], dtype=torch.int16), 3)
    expected = [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [0, 0]]]
    assert torch.equal(found[0].int(), torch.tensor(expected, dtype=torch.int32))


@each_dim
def test_a_network_starts_as_the_plain_one(dim: int) -> None:
    """With the weights of a U-Net: each modulation is zero-initialised, so that at first no map has an effect."""
    sizes: dict[str, Any] = {"channels": (8, 16), "attention": (False, True), "num_res_blocks": 1, "head_channels": 8}
    plain, network = UNet(dim, **sizes), SemanticUNet(K, 6, dim=dim, **sizes)
    randomise(plain)
    with torch.no_grad():  # norms of blocks as they start: the network has no weights of this kind
        for name, parameter in plain.named_parameters():
            if ".block.norm" in name:
                parameter.fill_(float(name.endswith("weight")))
    missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[3] for name in missing} == {"modulation"}
    assert {name.split(".")[3] for name in unexpected} == {"norm1", "norm2"}
    found = network(*noisy(dim), Condition(label_map=classes(dim)))
    assert found.std() > 0.1
    assert_close(found, plain(*noisy(dim)), rtol=1e-5, atol=1e-5)


@each_dim
def test_every_block_is_modulated_and_every_weight_learns(dim: int) -> None:
    """The way down, the middle and the way up; covariates attended to beside it."""
    network = semantic(dim, covariates=Covariates(numbers=["age_years"]))
    blocks = [module for module in network.modules() if isinstance(module, SemanticBlock)]
    assert len(blocks) == 2 + 2 + 4
    condition = Condition({"age_years": torch.tensor([0.3, torch.nan, 1.0])}, label_map=classes(dim))
    network(*noisy(dim), condition).square().mean().backward()
    silent = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


@each_dim
def test_a_relabelled_map_with_relabelled_weights_is_the_same(dim: int) -> None:
    """Exactly: classes are names, of which none is before another."""
    network, permutation = semantic(dim).double(), torch.tensor([2, 0, 3, 1])
    x, t = noisy(dim)
    found = network(x.double(), t, Condition(label_map=classes(dim)))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Modulation):
                weight = module.hidden.weight
                assert isinstance(weight, Tensor)
                weight.copy_(weight[:, permutation.argsort()])
    relabelled = network(x.double(), t, Condition(label_map=permutation[classes(dim)]))
    assert_close(relabelled, found, rtol=1e-10, atol=1e-10)
    other = network(x.double(), t, Condition(label_map=classes(dim)))
    assert (other - found).abs().max() > 1e-3


def test_a_map_of_one_class_modulates() -> None:
    """MONAI's SPADE normalises gamma and beta over the image, so that such a map has no effect inside of it."""
    network, (x, t) = semantic(), noisy()
    found = [network(x, t, Condition(label_map=torch.full((3, 1, 8, 4), k))) for k in (ABSENT_CLASS, *range(K))]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().amax((1, 2, 3)).min() > 1e-3


def test_an_absent_map_is_zero_and_one_that_is_not_given() -> None:
    """The null map of guidance, for the rows that lack it alone."""
    network, (x, t) = semantic(), noisy()
    condition = Condition(label_map=classes())
    null = network(x, t)
    assert torch.equal(network(x, t, Condition()), null)
    absent = torch.tensor([True, False, True])
    found = network(x, t, condition.drop(absent))
    assert_close(found[absent], null[absent])
    assert_close(found[~absent], network(x, t, condition)[~absent])
    assert (found - null)[~absent].abs().max() > 1e-3
    hidden = network.maps(x, condition.drop(absent).label_map)
    assert not any(hot[absent].any() for hot in hidden.values())


@each_dim
@pytest.mark.parametrize("size", [(16, 8, 8), (13, 9, 5), (7, 5, 3), (1, 2, 3)])
@pytest.mark.parametrize("factor", [1, 4, 1.5])
def test_a_nodule_of_one_pixel_reaches_every_level(dim: int, size: tuple[int, ...], factor: float) -> None:
    """Wherever it is, at any size of image and map, and what surrounds it stays seen."""
    network = semantic(dim, channels=(8, 8, 8, 8), attention=(False,) * 4)
    x, t = noisy(dim, size)
    whole = tuple(int(factor * side) for side in size[:dim])
    for place in ([0] * dim, [side - 1 for side in whole], [side // 3 for side in whole]):
        label_map = torch.zeros(3, 1, *whole, dtype=torch.long)
        label_map[(1, 0, *place)] = 3
        pyramid = network.maps(x, label_map)
        for level, hot in pyramid.items():
            assert hot.shape == (3, K, *level)
            assert hot[1, 3].sum() >= 1
            assert not hot[[0, 2], 3].any()
            assert hot[[0, 2], 0].all()
        assert network(x, t, Condition(label_map=label_map)).shape == x.shape


def test_nearest_loses_it_as_the_public_code_does() -> None:
    """The map at the size of the image is exact; an eighth of it is every eighth pixel of every eighth line."""
    network, x = semantic(channels=(8, 8, 8, 8), attention=(False,) * 4, pyramid="nearest"), torch.randn(3, 1, 16, 16)
    label_map = torch.zeros(3, 1, 16, 16, dtype=torch.long)
    label_map[:, :, 5, 6] = 3
    pyramid = network.maps(x, label_map)
    assert [int(hot[0, 3].sum()) for hot in pyramid.values()] == [1, 0, 0, 0]
    random = torch.randint(0, K, (3, 1, 32, 32))
    for (side, _), hot in network.maps(x, random).items():
        assert torch.equal(hot.argmax(1), random[:, 0, :: 32 // side, :: 32 // side])


def test_what_a_window_holds_is_what_the_image_holds_there() -> None:
    """Max-pooling each class by itself: a level's pixel has a class where any pixel of its window has it."""
    network, x, label_map = semantic(), torch.randn(3, 1, 8, 4), classes()
    hot = one_hot(label_map, K)
    for (rows, columns), found in network.maps(x, label_map).items():
        windows = hot.reshape(3, K, rows, 16 // rows, columns, 8 // columns)
        assert torch.equal(found.bool(), windows.any(5).any(3))


@pytest.mark.parametrize(
    "shape",
    [
        (3, 1, 7, 4),  # smaller than x
        (3, 8, 4),  # no channel
        (3, K, 8, 4),  # one-hot already
        (2, 1, 8, 4),  # of other images
        (3, 1, 8, 4, 4),  # a volume
    ],
)
def test_maps_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a label map of \(3|2, .* for images of \(3, 1, 8, 4\); give one channel"):
        semantic()(*noisy(), Condition(label_map=torch.zeros(shape, dtype=torch.long)))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"modulation_channels": 0}, "modulation_channels is 0"),
        ({"pyramid": "mean"}, "pyramid is 'mean'; give max or nearest"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        semantic(**arguments)


def test_one_image_does_not_see_the_map_of_another() -> None:
    network, (x, t), label_map = semantic().double(), noisy(), classes()
    x = x.double()
    together = network(x, t, Condition(label_map=label_map))
    for i in range(3):
        alone = network(x[i : i + 1], t[i : i + 1], Condition(label_map=label_map[i : i + 1]))
        assert_close(alone, together[i : i + 1], rtol=1e-10, atol=1e-10)


def test_the_map_acts_where_it_is() -> None:
    """A pixel of another class changes gamma and beta within the reach of two convolutions, and there alone."""
    modulation = Modulation(2, K, 6, (8, 8))
    randomise(modulation, 0.2)
    before, after = torch.zeros(2, 1, 1, 12, 12, dtype=torch.long)
    after[..., 5, 6] = 1
    near = torch.zeros(12, 12, dtype=torch.bool)
    near[3:8, 4:9] = True
    pairs = [modulation(one_hot(label_map, K).float()) for label_map in (before, after)]
    for old, new in zip(*pairs, strict=True):
        for one, other in zip(old, new, strict=True):
            assert torch.equal((one - other).abs().amax((0, 1)) > 1e-7, near)


@each_dim
def test_gradient_checkpointing_changes_memory_only(dim: int) -> None:
    outcomes = []
    condition = Condition({"age_years": torch.tensor([0.3, torch.nan, 1.0])}, label_map=classes(dim))
    for gradient_checkpointing in (False, True):
        covariates = Covariates(numbers=["age_years"])
        network = semantic(dim, dropout=0.2, covariates=covariates, gradient_checkpointing=gradient_checkpointing)
        torch.manual_seed(0)
        out = network.train()(*noisy(dim), condition)
        out.square().mean().backward()
        outcomes.append([out, *(parameter.grad for parameter in network.parameters())])
    for plain, recomputed in zip(*outcomes, strict=True):
        assert_close(recomputed, plain, rtol=1e-6, atol=1e-7)


@each_dim
def test_bfloat16_is_float32_but_for_rounding(dim: int) -> None:
    network, condition = semantic(dim), Condition(label_map=classes(dim))
    plain = network(*noisy(dim), condition)
    with torch.autocast("cpu", torch.bfloat16):
        halves = network(*noisy(dim), condition)
    assert_close(halves.float(), plain, rtol=0.1, atol=0.05 * plain.abs().max().item())


@each_dim
@pytest.mark.parametrize("norm", ["first", "second"])
def test_parity_with_monai(dim: int, norm: str) -> None:
    """MONAI's SPADE with our weights, as a ReLU and without the norms that it has on gamma and beta."""
    ours = Modulation(dim, K, 6, (8, 16))
    randomise(ours, 0.3)
    first, width = (0, 8) if norm == "first" else (16, 16)
    groups = group_norm(width, affine=False)
    theirs = SPADE(K, width, spatial_dims=dim, hidden_channels=6, norm="GROUP", norm_params=params(groups))
    theirs.mlp_shared.adn = nn.ReLU()
    theirs.mlp_gamma.adn, theirs.mlp_beta.adn = nn.Identity(), nn.Identity()
    weights = {f"mlp_shared.conv.{name}": value for name, value in ours.hidden.state_dict().items()}
    for start, part in ((first, "gamma"), (first + width, "beta")):
        rows = slice(start, start + width)
        weights |= {f"mlp_{part}.conv.{name}": value[rows] for name, value in ours.out.state_dict().items()}
    theirs.load_state_dict(weights)
    h, hot = torch.randn(3, width, *(8, 4, 6)[:dim]), one_hot(classes(dim, (8, 4, 6)), K).float()
    gamma, beta = ours(hot)[norm == "second"]
    assert_close(groups(h) * (1 + gamma) + beta, theirs(h, hot), rtol=1e-5, atol=1e-5)


def params(norm: nn.GroupNorm) -> dict[str, Any]:
    """What MONAI needs to make the same norm."""
    return {"num_groups": norm.num_groups, "affine": False, "eps": norm.eps}


def test_a_trace_gives_what_the_network_gives_of_other_label_maps() -> None:
    """Of another number of images too."""
    network = semantic().eval()

    class OfTensors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor, label_map: Tensor) -> Tensor:
            found: Tensor = self.network(x, t, Condition(label_map=label_map))
            return found

    def inputs(num: int) -> tuple[Tensor, ...]:
        return torch.randn(num, 1, 8, 12), torch.rand(num), torch.randint(K, (num, 1, 16, 24))

    with torch.no_grad():
        traced = trace(OfTensors(), inputs(2), num_others=3)
        x, t, label_map = inputs(3)
        found = traced(x, t, label_map)
        torch.testing.assert_close(found, network(x, t, Condition(label_map=label_map)))
        assert (found - traced(x, t, label_map * 0)).abs().max() > 1e-3
