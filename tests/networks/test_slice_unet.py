"""The slice U-Net: a function of sets of slices, which their indices alone tell apart."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.testing import assert_close

from lit_medgen.batch import PADDING, Condition
from lit_medgen.networks import SliceUNet
from lit_medgen.networks.slice_unet import SliceAttention, SliceContext

assert_same = partial(assert_close, rtol=1e-4, atol=1e-5)
"""float32 through some twenty layers; where results should differ they do so by more than 1e-3."""

each_position = pytest.mark.parametrize("absolute_position", [True, False])


def randomise(network: nn.Module, std: float = 0.08) -> None:
    """Random weights everywhere, zero-initialised layers included; norms stay near the identity."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(around + std * torch.randn(parameter.shape, generator=random))


def slice_unet(absolute_position: bool = True) -> SliceUNet:
    """Two levels: slices attend to each other in both, within themselves in the second; no weight is zero."""
    network = SliceUNet(
        channels=(24, 48),
        slice_attention=(True, True),
        attention=(False, True),
        num_res_blocks=1,
        head_channels=12,
        absolute_position=absolute_position,
    )
    randomise(network)
    return network.eval().requires_grad_(False)


def example() -> tuple[Tensor, Tensor, Condition]:
    """Two volumes with six slices each, of which two are given; x: 2 1 6 4 4."""
    x, image = torch.randn(2, 2, 1, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    observed = torch.tensor([[True, False, False, True, False, False], [False, True, False, False, False, True]])
    slice_index = torch.tensor([[0, 3, 4, 9, 20, 21], [7, 5, 6, 8, 30, 2]])
    return x, torch.tensor([0.2, 0.7]), Condition(image=image, observed=observed, slice_index=slice_index)


def places(x: Tensor, condition: Condition, chosen: Tensor) -> tuple[Tensor, Condition]:
    """The set with only the chosen places, in the chosen order."""
    assert condition.image is not None
    assert condition.observed is not None
    assert condition.slice_index is not None
    return x[:, :, chosen], replace(
        condition,
        image=condition.image[:, :, chosen],
        observed=condition.observed[:, chosen],
        slice_index=condition.slice_index[:, chosen],
    )


def padded() -> tuple[Tensor, Tensor, Condition]:
    """The example with padding in places 1 and 4."""
    x, t, condition = example()
    assert condition.slice_index is not None
    assert condition.observed is not None
    slice_index, observed = condition.slice_index.clone(), condition.observed.clone()
    slice_index[:, [1, 4]] = PADDING
    observed[:, [1, 4]] = False
    return x, t, replace(condition, slice_index=slice_index, observed=observed)


@each_position
def test_the_order_of_a_set_is_meaningless(absolute_position: bool) -> None:
    """Permuting the places of a set permutes the result."""
    network, (x, t, condition) = slice_unet(absolute_position), example()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted, permuted_condition = places(x, condition, order)
    assert_same(network(permuted, t, permuted_condition), network(x, t, condition)[:, :, order])


@each_position
def test_only_absolute_position_knows_where_a_set_stands(absolute_position: bool) -> None:
    """Moving all slices along by 40 changes nothing for relative positions."""
    network, (x, t, condition) = slice_unet(absolute_position), example()
    assert condition.slice_index is not None
    here, there = (network(x, t, replace(condition, slice_index=condition.slice_index + shift)) for shift in (0, 40))
    if absolute_position:
        assert (here - there).abs().max() > 1e-3
    else:
        assert_same(there, here)


@each_position
def test_distances_between_slices_matter(absolute_position: bool) -> None:
    """The same slices, mirrored or set wider apart, give another result; relative positions alone tell them apart."""
    network, (x, t, condition) = slice_unet(absolute_position), example()
    assert condition.slice_index is not None
    result = network(x, t, condition)
    for other in (30 - condition.slice_index, 2 * condition.slice_index):
        assert (network(x, t, replace(condition, slice_index=other)) - result).abs().max() > 1e-3


@each_position
def test_padding_and_slices_do_not_see_each_other(absolute_position: bool) -> None:
    """Real places give what they give without padding, and padding gives the same whatever the real places hold."""
    network, (x, t, condition) = slice_unet(absolute_position), padded()
    real, padding = torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4])
    result = network(x, t, condition)
    unpadded, unpadded_condition = places(x, condition, real)
    assert_same(result[:, :, real], network(unpadded, t, unpadded_condition))

    changed, image = x.clone(), condition.image.clone()  # type: ignore[union-attr]
    changed[:, :, real] += 1
    image[:, :, real] -= 1
    assert_same(network(changed, t, replace(condition, image=image))[:, :, padding], result[:, :, padding])


def test_an_item_of_padding_alone_is_finite() -> None:
    network, (x, t, condition) = slice_unet(), example()
    nothing = torch.full((2, 6), PADDING)
    assert network(x, t, replace(condition, slice_index=nothing)).isfinite().all()


def test_given_slices_enter_clean() -> None:
    """Where a slice is observed x is irrelevant, and where it is not the condition's image is."""
    network, (x, t, condition) = slice_unet(), example()
    assert condition.image is not None
    assert condition.observed is not None
    given = condition.observed[:, None, :, None, None].expand_as(x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    result = network(x, t, condition)
    assert torch.equal(network(torch.where(given, noise, x), t, condition), result)
    assert torch.equal(network(x, t, replace(condition, image=torch.where(given, condition.image, noise))), result)


def test_the_network_is_told_which_slices_are_given() -> None:
    """The same pixels mean something else when they are given than when they are noisy."""
    network, (x, t, condition) = slice_unet(), example()
    assert condition.observed is not None
    given = replace(condition, image=x)
    wanted = replace(given, observed=torch.zeros_like(condition.observed))
    assert (network(x, t, given) - network(x, t, wanted)).abs().max() > 1e-3


@each_position
def test_targets_follow_a_given_slice(absolute_position: bool) -> None:
    """Changing one given slice of one volume changes every other slice of it, and nothing of another volume."""
    network, (x, t, condition) = slice_unet(absolute_position), example()
    assert condition.image is not None
    image = condition.image.clone()
    image[0, :, 3] += 1
    change = (network(x, t, replace(condition, image=image)) - network(x, t, condition)).abs().amax((1, 3, 4))
    assert (change[0] > 1e-4).all()
    assert_same(change[1], torch.zeros(6))


def test_the_result_is_zero_and_slices_are_alone_at_first() -> None:
    """Zero-initialised: the last convolution, and every attention's way out."""
    x, t, condition = example()
    network = SliceUNet((24, 48), (True, True), (False, True), num_res_blocks=1, head_channels=12)
    assert not network(x, t, condition).any()
    across = SliceAttention(24, 12, 96)
    h = torch.randn(12, 24, 4, 4)
    assert condition.slice_index is not None
    assert torch.equal(across(h, SliceContext.of(condition.slice_index, torch.randn(2, 96))), h)


def test_every_parameter_learns() -> None:
    """Once no layer is zero, each parameter has a gradient well above rounding."""
    network = slice_unet().requires_grad_()
    network(*example()).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    largest = {name: 0.0 if gradient is None else float(gradient.abs().max()) for name, gradient in gradients.items()}
    assert [name for name, value in largest.items() if value < 1e-6 * max(largest.values())] == []


def test_gradient_checkpointing_changes_memory_only() -> None:
    """Equal outputs and gradients, through attention across slices too."""
    outcomes = []
    for gradient_checkpointing in (False, True):
        network = slice_unet().requires_grad_().train()
        network.gradient_checkpointing = gradient_checkpointing
        out = network(*example())
        out.square().mean().backward()
        outcomes.append([out, *(parameter.grad for parameter in network.parameters())])
    for plain, recomputed in zip(*outcomes, strict=True):
        assert_close(recomputed, plain, rtol=1e-6, atol=1e-7)


def distance_features(i: int, j: int) -> Tensor:
    """3: log(1 + max(d, 0)), log(1 + max(-d, 0)) and d = 0, for d = i - j."""
    d = i - j
    return torch.tensor([math.log1p(max(d, 0)), math.log1p(max(-d, 0)), float(d == 0)], dtype=torch.float64)


def test_distance_features_and_who_may_attend() -> None:
    """Features of the distance from slice j to slice i; padding and slices are apart."""
    slice_index = [4, 0, 9, PADDING, PADDING]
    context = SliceContext.of(torch.tensor([slice_index]), torch.zeros(1, 2))
    for i, a in enumerate(slice_index):
        for j, b in enumerate(slice_index):
            assert context.may_attend[0, i, j] == ((a == PADDING) == (b == PADDING))
            assert_close(context.distance[0, i, j].double(), distance_features(a, b), rtol=1e-6, atol=1e-6)


def test_attention_across_slices_is_the_formula() -> None:
    """The module docstring's, by loops over volumes, places, heads and slices (Shaw et al. 2018 with R of all three).

    logit_ij = (q_i k_j + q_i R^k_ij + k_j R^q_ij) / sqrt(dim),   out_i = sum_j softmax_ij (v_j + R^v_ij)
    """
    channels, head_channels, embedding_size, (y, x) = 8, 4, 5, (2, 3)
    layer = SliceAttention(channels, head_channels, embedding_size).double()
    randomise(layer, std=0.5)
    torch.manual_seed(0)
    slice_index = [[4, 0, 9, 5], [2, 7, PADDING, PADDING]]
    h = torch.randn(8, channels, y, x, dtype=torch.float64)
    embedding = torch.randn(2, embedding_size, dtype=torch.float64)
    context = SliceContext(
        distance=torch.stack(
            [torch.stack([torch.stack([distance_features(i, j) for j in n]) for i in n]) for n in slice_index]
        ),
        may_attend=torch.tensor([[[(i == PADDING) == (j == PADDING) for j in n] for i in n] for n in slice_index]),
        embedding=embedding,
    )

    expected = h.clone()
    normed = layer.norm(h)
    for volume, indices in enumerate(slice_index):
        for row in range(y):
            for column in range(x):
                q, k, v = layer.qkv(normed[4 * volume : 4 * volume + 4, :, row, column]).split(channels, dim=-1)
                mixed = torch.zeros(4, channels, dtype=torch.float64)
                for first in range(0, channels, head_channels):
                    head = slice(first, first + head_channels)
                    for i in range(4):
                        seen = [j for j in range(4) if (indices[i] == PADDING) == (indices[j] == PADDING)]
                        logits, values = [], []
                        for j in seen:
                            features = distance_features(indices[i], indices[j])
                            hidden = silu(layer.distance(features) + layer.time(embedding[volume]))
                            r_q, r_k, r_v = (r[head] for r in layer.relative(hidden).split(channels))
                            logit = q[i, head] @ k[j, head] + q[i, head] @ r_k + k[j, head] @ r_q
                            logits.append(logit / math.sqrt(head_channels))
                            values.append(v[j, head] + r_v)
                        weights = torch.stack(logits).softmax(0)
                        mixed[i, head] = weights @ torch.stack(values)
                expected[4 * volume : 4 * volume + 4, :, row, column] += layer.out(mixed)
    assert_close(layer(h, context), expected, rtol=1e-10, atol=1e-10)


def test_a_set_without_indices_is_refused() -> None:
    x, t, _ = example()
    for condition in (None, Condition()):
        with pytest.raises(ValueError, match=r"needs condition\.slice_index"):
            slice_unet()(x, t, condition)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"slice_attention has 3 entries and channels has 2; give one for each level"):
        SliceUNet((32, 32), (True, True, True), (True, True))
    with pytest.raises(ValueError, match=r"head_channels is 20, which does not divide 32 channels"):
        SliceUNet((32, 32), (True, True), (True, True), head_channels=20)
