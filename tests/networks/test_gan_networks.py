"""The GANs' networks at any size: halved as often as may be, padded and cropped, right shapes."""

from __future__ import annotations

import pytest
import torch

from lit_medgen.networks.gans import ConvAutoencodingGAN, ConvGAN, Halvings

SIZES = [(64,) * 3, (128,) * 3, (176, 176), (80, 96, 80), (91, 109, 91), (8, 8), (40, 48)]
HALVED = [(4, (4,) * 3), (5, (4,) * 3), (4, (11, 11)), (4, (5, 6, 5)), (4, (6, 7, 6)), (1, (4, 4)), (3, (5, 6))]


@pytest.mark.parametrize(("size", "halved"), list(zip(SIZES, HALVED, strict=True)))
def test_sizes_are_halved_to_a_coarse_grid(size: tuple[int, ...], halved: tuple[int, tuple[int, ...]]) -> None:
    found = Halvings.of(size)
    assert (found.num, found.grid) == halved


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (45, 54, 45), (91, 109, 91), (176, 176)])
def test_what_is_padded_and_cropped_is_the_same(size: tuple[int, ...]) -> None:
    """And what was added is dark."""
    halvings, image = Halvings.of(size), torch.rand(1, 1, *size)
    padded = halvings.padded(image)
    assert padded.shape[2:] == tuple(side * 2**halvings.num for side in halvings.grid)
    assert torch.equal(halvings.cropped(padded), image)
    torch.testing.assert_close(padded.sum() - image.sum(), -1.0 * torch.tensor(padded.numel() - image.numel()))


@pytest.mark.parametrize("size", [(64,), (7, 64), (16, 16, 16, 16)])
def test_sizes_too_small_or_of_other_axes_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give 2 or 3 sides of at least 8 voxels"):
        Halvings.of(size)


@pytest.mark.parametrize("head", ["whole", "patches"])
@pytest.mark.parametrize("size", SIZES)
def test_shapes_at_any_size(size: tuple[int, ...], head: str) -> None:
    """By shape alone, at the width of the papers."""
    with torch.device("meta"):
        image, code = torch.empty(2, 3, *size), torch.empty(2, 10)
        network = ConvGAN(size, 3, 10, discriminator_head=head)  # type: ignore[arg-type]
        assert network.generator(code).shape == image.shape
        assert network.discriminator(image).shape == (2,)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_shapes_of_autoencoding_networks_at_any_size(size: tuple[int, ...], gaussian: bool) -> None:
    hidden = 16 * gaussian
    with torch.device("meta"):
        image, code = torch.empty(2, 1, *size), torch.empty(2, 10)
        network = ConvAutoencodingGAN(
            size, 1, 10, gaussian=gaussian, encoder_hidden=hidden, code_discriminator_hidden=8
        )
        assert network.encoder(image).shape == (2, 20 if gaussian else 10)
        assert network.code_discriminator is not None
        assert network.code_discriminator(code).shape == (2,)
        assert network.generator(code).shape == image.shape
