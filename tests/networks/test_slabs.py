"""A network applied slab by slab gives what it gives in one piece, everywhere, however thick the slabs are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lit_medgen.networks import Autoencoder
from lit_medgen.networks.blocks import conv
from lit_medgen.networks.slabs import in_slabs

SIZE = {2: (12, 10), 3: (6, 5, 4)}


def autoencoder(dim: int) -> Autoencoder:
    torch.manual_seed(dim)
    network = Autoencoder(dim, 2, 3, (8, 16, 16), (False, True, False), num_res_blocks=1, head_channels=8).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 1 / parameter[0].numel() ** 0.5)
    return network


@pytest.mark.parametrize("thickness", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("dim", [2, 3])
def test_decoding_is_that_of_one_piece(dim: int, thickness: int) -> None:
    network, latents = autoencoder(dim), 10 * torch.randn(2, 3, *SIZE[dim]) + 3
    before = latents.clone()
    with torch.no_grad():
        expected = network.decode(latents)
    found = network.decode_in_slabs(latents, thickness)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5
    assert torch.equal(latents, before)
    if thickness < SIZE[dim][0]:  # a slab alone, its neighbours unknown, is another image
        piece = network.decode(latents[:, :, :thickness])
        assert (piece[:, :, -1] - expected[:, :, 4 * thickness - 1]).abs().max() > 0.01


@pytest.mark.parametrize("thickness", [1, 3, 4, 100])
@pytest.mark.parametrize("dim", [2, 3])
def test_strides_are_those_of_one_piece(dim: int, thickness: int) -> None:
    network = autoencoder(dim)
    images = torch.randn(1, 2, *(4 * side - odd for side, odd in zip(SIZE[dim], (1, 2, 0), strict=False)))
    with torch.no_grad():
        expected = network.encode(images)
    assert (in_slabs(network.encoder, images, thickness) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(4, 2, 1, 1), (3, 1, 2, 2), (5, 3, 0, 1), (1, 1, 0, 1)]
)
def test_any_convolution_reads_its_halo(kernel: int, stride: int, padding: int, dilation: int) -> None:
    layer = nn.Conv3d(2, 4, kernel, stride, padding, dilation, groups=2)
    images = torch.randn(1, 2, 13, 9, 10)
    with torch.no_grad():
        torch.testing.assert_close(in_slabs(layer, images, 2), layer(images), atol=1e-5, rtol=0)


def test_maps_can_be_kept_elsewhere() -> None:
    """On a machine without a second device the storage is the same; the result lies there."""
    network, latents = autoencoder(3), torch.randn(1, 3, *SIZE[3])
    found = network.decode_in_slabs(latents, 3, "cpu")
    assert found.device.type == "cpu"
    assert torch.equal(found, network.decode_in_slabs(latents, 3))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.BatchNorm3d(2), "BatchNorm3d is no layer"),
        (nn.Upsample(scale_factor=2, mode="trilinear"), "Upsample is no layer"),
        (nn.Upsample(size=(8, 8, 8)), "Upsample is no layer"),
        (nn.Conv3d(2, 2, 3, padding=1, padding_mode="circular"), "circular"),
    ],
)
def test_unknown_layers_are_refused(layer: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"slabs: .*{text}"):
        in_slabs(nn.Sequential(conv(3, 2, 2), layer), torch.randn(1, 2, 4, 4, 4), 2)
    with pytest.raises(ValueError, match="give at least 1"):
        in_slabs(nn.Identity(), torch.randn(1, 2, 4, 4, 4), 0)
