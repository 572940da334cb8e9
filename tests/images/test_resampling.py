"""Laws of block means and of interpolation between grids with the same field of view."""

from __future__ import annotations

import pytest
import torch

from lit_medgen.images.resampling import Interpolation, block_means, finer_affine, interpolated


@pytest.mark.parametrize("factor", [(2, 3), (2, 1, 3)])
def test_block_means_undo_repetition_and_keep_the_mean(factor: tuple[int, ...]) -> None:
    low = torch.randn(2, 3, 4, 5, 6)[(..., *[0] * (3 - len(factor)))]
    fine = low
    for axis, each in enumerate(factor, start=2):
        fine = fine.repeat_interleave(each, dim=axis)
    torch.testing.assert_close(block_means(fine, factor), low)
    noise = torch.randn_like(fine)
    axes = tuple(range(2, fine.ndim))
    torch.testing.assert_close(block_means(noise, factor).mean(axes), noise.mean(axes), rtol=0, atol=1e-6)


def test_blocks_that_do_not_fill_an_image_are_refused() -> None:
    for factor in ((3, 2), (2,), (2, 2, 2)):
        with pytest.raises(ValueError, match="do not fill"):
            block_means(torch.zeros(1, 1, 8, 8), factor)


@pytest.mark.parametrize(("kind", "degree"), [("linear", 1), ("cubic", 2)])
@pytest.mark.parametrize("factor", [2, 3])
def test_interpolation_is_exact_for_polynomials_away_from_the_border(
    kind: Interpolation, degree: int, factor: int
) -> None:
    """Linear for straight lines, Keys' cubic for parabolas too (his third order)."""

    def sampled(length: int) -> torch.Tensor:
        x = (torch.arange(length) + 0.5) / length
        return (0.3 + x**degree)[:, None] * (1 - x**degree) + x[:, None]

    found = interpolated(sampled(12)[None, None], (12 * factor,) * 2, kind)[0, 0]
    border = 2 * factor
    inside = (slice(border, -border),) * 2
    torch.testing.assert_close(found[inside], sampled(12 * factor)[inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_interpolation_keeps_its_grid_constants_and_the_order_of_axes(kind: Interpolation) -> None:
    torch.manual_seed(0)
    low = torch.randn(2, 2, 4, 5, 3)
    torch.testing.assert_close(interpolated(low, (4, 5, 3), kind), low)
    torch.testing.assert_close(interpolated(torch.ones(1, 1, 4, 5, 3), (8, 15, 3), kind), torch.ones(1, 1, 8, 15, 3))
    fine = interpolated(low, (8, 15, 6), kind)
    turned = interpolated(low.permute(0, 1, 4, 2, 3), (6, 8, 15), kind)
    torch.testing.assert_close(fine.permute(0, 1, 4, 2, 3), turned, rtol=0, atol=1e-5)


def test_the_centre_of_a_block_is_the_mean_of_its_voxels_centres() -> None:
    low = torch.tensor([[0.0, -4, 0, 30], [6, 0, 0, -8], [0, 0, 2, 1], [0, 0, 0, 1]]).double()
    fine = finer_affine(low, (5, 6, 7), (10, 18, 7))
    block = torch.tensor([[x, y, 3, 1] for x in (4, 5) for y in (9, 10, 11)]).double()  # of the low voxel 2, 3, 3
    torch.testing.assert_close((block @ fine.T).mean(0), low @ torch.tensor([2.0, 3, 3, 1]).double())
    torch.testing.assert_close(fine[:3, :3].norm(dim=0), torch.tensor([3.0, 4 / 3, 2]).double())
    assert torch.equal(finer_affine(low, (5, 6, 7), (5, 6, 7)), low)
