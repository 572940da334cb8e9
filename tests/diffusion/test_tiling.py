"""Laws of tiles: one that covers all changes nothing, many have no seams."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d, pad

from lit_medgen.batch import Condition
from lit_medgen.diffusion import DDIM, Cosine, Tiled
from lit_medgen.diffusion.tiling import cut, windows


class Smooth:
    """Expects the mean of x_t's neighbours, and knows what it was shown."""

    schedule = Cosine()

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.shown.append(tuple(x_t.shape[2:]))
        padded = pad(x_t, [1, 1] * (x_t.ndim - 2), mode="replicate")  # as networks, it sees nothing beyond the border
        found = (avg_pool2d if x_t.ndim == 4 else avg_pool3d)(padded, 3, stride=1)
        return found if condition.source is None else found + condition.source.mean()


class Voxelwise:
    """Expects the source times x_t, voxel by voxel: tiles must give exactly what the whole gives."""

    schedule = Cosine()

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.source is not None
        return 0.5 * x_t + condition.source[..., ::2, ::2]


def test_one_tile_that_covers_all_is_the_denoiser_itself() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(2, 1, 12, 10), torch.full((2,), 0.5)
    for tile in ((12, 10), (99, 99)):
        assert torch.equal(Tiled(Smooth(), tile)(x, t, Condition()), Smooth()(x, t, Condition()))
    sampled = [DDIM(5)(denoiser, x) for denoiser in (Smooth(), Tiled(Smooth(), (12, 10)))]
    assert torch.equal(*sampled)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_what_a_voxel_says_of_itself_is_the_same_in_tiles(overlap: float) -> None:
    torch.manual_seed(0)
    x, source = torch.randn(2, 1, 13, 10), torch.randn(2, 1, 26, 20)
    condition, t = Condition(source=source), torch.full((2,), 0.5)
    whole, tiled = Voxelwise()(x, t, condition), Tiled(Voxelwise(), (5, 4), overlap)(x, t, condition)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_cover_and_overlap(overlap: float) -> None:
    for side in range(6, 20):
        found = [window[0] for window in windows((side,), (6,), overlap)]
        assert sorted({i for place in found for i in range(place.start, place.stop)}) == list(range(side))
        assert all(place.stop - place.start == 6 for place in found)
        for a, b in itertools.pairwise(found):
            assert a.stop - b.start >= int(6 * overlap)


def test_tiles_see_one_size_in_two_and_three_dimensions() -> None:
    for size, tile in (((9, 14), (6, 6)), ((9, 6, 7), (6, 6, 4))):
        denoiser = Smooth()
        Tiled(denoiser, tile)(torch.randn(1, 1, *size), torch.ones(1), Condition())
        assert set(denoiser.shown) == {tile}


def test_tiles_have_no_seams() -> None:
    """Neighbours in a sample differ as much across the border of a tile as inside: the ratio is between 0.9 and 1.1."""
    torch.manual_seed(0)
    sample = DDIM(8)(Tiled(Smooth(), (16, 16), 0.25), torch.randn(40, 1, 40, 40))
    steps = sample.diff(dim=2).square().mean((0, 1, 3))
    borders = sorted({edge - 1 for window in windows((40, 40), (16, 16), 0.25) for edge in (window[0].start,) if edge})
    borders += sorted({window[0].stop - 1 for window in windows((40, 40), (16, 16), 0.25) if window[0].stop < 40})
    inside = [i for i in range(2, 37) if i not in borders]
    assert 0.9 < (steps[borders].mean() / steps[inside].mean()).item() < 1.1


def test_conditions_are_cut_at_the_same_place() -> None:
    fine = torch.arange(8 * 8).view(1, 1, 8, 8)
    found = cut(Condition(source=fine.float(), label_map=fine), (slice(1, 3), slice(0, 2)), (4, 4))
    assert found.label_map is not None
    assert torch.equal(found.label_map, fine[..., 2:6, 0:4])
    with pytest.raises(ValueError, match="source has 6 voxels where the image has 4"):
        cut(Condition(source=torch.zeros(1, 1, 6, 6)), (slice(0, 2), slice(0, 2)), (4, 4))


@pytest.mark.parametrize(("tile", "overlap"), [((), 0.25), ((4, 0), 0.25), ((4, 4), 1.0)])
def test_tiles_that_cannot_be(tile: tuple[int, ...], overlap: float) -> None:
    with pytest.raises(ValueError, match="tile is"):
        Tiled(Smooth(), tile, overlap)
