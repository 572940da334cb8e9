"""The U-Net: shapes, initialisation, gradients, and parity with MONAI's on copied weights."""

from __future__ import annotations

import re

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.testing import assert_close

from lit_medgen.networks import UNet
from lit_medgen.networks.blocks import Attention, ResidualBlock, attend


def randomise(network: nn.Module, std: float = 0.05) -> None:
    """Random weights everywhere, zero-initialised layers included; norms stay near the identity."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(around + std * torch.randn(parameter.shape, generator=random))


def small(dim: int = 2, gradient_checkpointing: bool = False, dropout: float = 0.0) -> UNet:
    """Two levels, attention in the second; three channels in each group of the norms."""
    return UNet(
        dim,
        in_channels=2,
        out_channels=1,
        channels=(24, 48),
        attention=(False, True),
        num_res_blocks=1,
        head_channels=12,
        dropout=dropout,
        gradient_checkpointing=gradient_checkpointing,
    )


def example(dim: int) -> tuple[Tensor, Tensor]:
    """x: 2 2 *s and t: 2."""
    x = torch.randn(2, 2, *(8, 4, 6)[:dim], generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.1, 0.8])


each_dim = pytest.mark.parametrize("dim", [2, 3])


@each_dim
def test_the_result_has_the_size_of_the_input(dim: int) -> None:
    """b c *s -> b c' *s, for sizes that need be neither equal nor even."""
    network, (x, t) = small(dim), example(dim)
    assert network(x, t).shape == (2, 1, *x.shape[2:])
    odd = x[..., *[slice(1, None)] * dim]
    assert network(odd, t).shape == (2, 1, *odd.shape[2:])


def test_a_level_narrower_than_a_head_has_a_single_one() -> None:
    network = UNet(channels=(8, 16, 24), attention=(False, True, True), num_res_blocks=1, head_channels=24)
    heads = [step.attention.heads for step in network.down if isinstance(getattr(step, "attention", None), Attention)]
    assert heads == [1, 1]


@each_dim
def test_the_result_is_zero_at_first(dim: int) -> None:
    """The last convolution is zero-initialised (Ho et al. 2020's code)."""
    assert not small(dim)(*example(dim)).any()


@each_dim
def test_every_parameter_learns(dim: int) -> None:
    """Once no layer is zero, each parameter has a gradient well above rounding."""
    network = small(dim)
    randomise(network)
    network(*example(dim)).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    largest = {name: 0.0 if gradient is None else float(gradient.abs().max()) for name, gradient in gradients.items()}
    assert [name for name, value in largest.items() if value < 1e-6 * max(largest.values())] == []


@pytest.mark.parametrize("channels", [16, 32, 48, 64, 128])
def test_a_block_hears_its_embedding_at_every_width(channels: int) -> None:
    """The embedding shifts whole channels, which a norm over single channels would take out again."""
    block = ResidualBlock(2, channels, channels, embedding=8)
    randomise(block)
    torch.manual_seed(0)
    x, embedding = torch.randn(1, channels, 8, 8), torch.randn(2, 8)
    quiet, loud = block(x.expand(2, -1, -1, -1), embedding)
    assert (quiet - loud).abs().max() > 1e-3


@each_dim
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradient_checkpointing_changes_memory_only(dim: int, dropout: float) -> None:
    """Equal outputs and gradients, dropout's draws included."""
    outcomes = []
    for gradient_checkpointing in (False, True):
        network = small(dim, gradient_checkpointing, dropout).train()
        randomise(network)
        torch.manual_seed(0)
        out = network(*example(dim))
        out.square().mean().backward()
        outcomes.append([out, *(parameter.grad for parameter in network.parameters())])
    for plain, recomputed in zip(*outcomes, strict=True):
        assert_close(recomputed, plain, rtol=1e-6, atol=1e-7)


def test_attention_of_halves_is_that_of_floats_and_learns() -> None:
    """On a CPU bfloat16 is attended to in float32, also under autocast."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 8).bfloat16().requires_grad_() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, k, v)
    by_hand = (q.float() @ k.float().mT * 8**-0.5).softmax(-1) @ v.float()
    assert_close(found.float(), by_hand, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in (q, k, v))


def test_one_image_does_not_see_another() -> None:
    """A batch is its images, one by one."""
    network, (x, t) = small(), example(2)
    randomise(network)
    together = network(x, t)
    for i in range(2):
        assert_close(network(x[i : i + 1], t[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"attention has 2 entries and channels has 3; give one for each level"):
        UNet(channels=(32, 32, 32), attention=(False, True))
    with pytest.raises(ValueError, match=r"head_channels is 20, which does not divide 32 channels"):
        UNet(channels=(32, 32), attention=(False, False), head_channels=20)


# Parity with MONAI's DiffusionModelUNet.

MONAI_PARTS = {
    "time.0": "time_embed.0",
    "time.2": "time_embed.2",
    "conv_in": "conv_in.conv",
    "norm_out": "out.0",
    "conv_out": "out.2.conv",
    "block.norm1": "{resnet}.norm1",
    "block.conv1": "{resnet}.conv1.conv",
    "block.embed": "{resnet}.time_emb_proj",
    "block.norm2": "{resnet}.norm2",
    "block.conv2": "{resnet}.conv2.conv",
    "block.skip": "{resnet}.skip_connection.conv",
    "attention.norm": "{attention}.norm",
    "attention.qkv": "{attention}.attn.qkv",
    "attention.out": "{attention}.attn.out_proj",
    "": "{resize}.conv",  # down
    "1": "{resize}.conv",  # up
}
"""Parts of ours -> MONAI's, within a place of the way down, the middle or the way up."""


def monai_name(name: str, num_res_blocks: int) -> str:
    """MONAI's name of one of our parameters: it numbers the blocks of each level anew, ours run through."""
    match = re.fullmatch(r"(?:(down|middle|up)\.(\d+)\.?)?(.*)\.(weight|bias)", name)
    assert match is not None
    way, place, part, kind = match.groups()
    names: dict[str, str] = {}
    if way == "middle":
        names = {"resnet": f"middle_block.resnet_{int(place) + 1}", "attention": "middle_block.attention"}
    elif way is not None:
        per_level = num_res_blocks + 1 + (way == "up")  # the last one changes the size
        level, step = divmod(int(place), per_level)
        blocks = f"{way}_blocks.{level}"
        resize = {"down": "downsampler.op", "up": "upsampler.postconv"}[way]
        names = {
            "resnet": f"{blocks}.resnets.{step}",
            "attention": f"{blocks}.attentions.{step}",
            "resize": f"{blocks}.{resize}",
        }
    return f"{MONAI_PARTS[part].format(**names)}.{kind}"


@pytest.mark.parametrize(
    ("dim", "size", "channels", "attention", "num_res_blocks"),
    [
        (2, (16, 8), (64, 128, 128), (False, True, True), 2),
        (2, (8, 8), (64, 64), (True, False), 1),
        (3, (8, 4, 4), (64, 128), (False, True), 1),
    ],
)
def test_parity_with_monai(
    dim: int, size: tuple[int, ...], channels: tuple[int, ...], attention: tuple[bool, ...], num_res_blocks: int
) -> None:
    """The same weights give the same result as MONAI's network at time step 1000 t."""
    ours = UNet(dim, 2, 3, channels, attention, num_res_blocks, head_channels=32)
    theirs = DiffusionModelUNet(
        spatial_dims=dim,
        in_channels=2,
        out_channels=3,
        channels=channels,
        attention_levels=attention,
        num_res_blocks=num_res_blocks,
        num_head_channels=32,
        norm_num_groups=32,
        norm_eps=1e-6,
        use_combined_linear=True,
    )
    randomise(ours)
    theirs.load_state_dict({monai_name(name, num_res_blocks): value for name, value in ours.state_dict().items()})
    x, t = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(1)), torch.tensor([0.001, 0.3, 1.0])
    with torch.no_grad():
        out = ours(x, t)
        assert out.std() > 0.1
        assert (out[0] - ours(x[:1], t[2:])[0]).abs().max() > 1e-2  # time matters
        assert_close(out, theirs(x, 1000 * t), rtol=1e-5, atol=1e-5)
