"""The U-Net's way down as a network that tells what noisy images show (Dhariwal & Nichol 2021, section 4).

The spatial pooling of their classifier, as Zu's thesis (2023, figure 3.3) has it: features of every block, from the
finest level to the middle, are averaged over the image and joined, so that small and large patterns are both seen.
Shapes: b batch, c channels, *s spatial axes, f joined features.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn

from lit_medgen.networks.contracting_path import ContractingPath


class UNetEncoder(ContractingPath):
    """Network called as encoder(x, t) that tells numbers of images of any size.

    Args:
        dim: 2 or 3.
        in_channels: channels of x.
        out_channels: numbers told of each image.
        channels: width of each level; every level but the last halves the size.
        attention: which levels have attention; the middle always has.
        num_res_blocks: residual blocks per level.
        head_channels: width of an attention head, or one for each level, of which the middle has the last; a level that
            is narrower has a single head.
        hidden: width between the two linear layers that read the features.
        dropout: between the convolutions of a block.
        gradient_checkpointing: recompute blocks in the backward pass: less memory, about a third more time.
    """

    def __init__(
        self,
        dim: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: Sequence[int] = (64, 128, 256),
        attention: Sequence[bool] = (False, False, True),
        num_res_blocks: int = 2,
        head_channels: int | Sequence[int] = 32,
        hidden: int = 2048,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        if hidden < 1:
            raise ValueError(f"network.init_args.hidden is {hidden}; give at least 1.")
        super().__init__(
            dim, in_channels, channels, attention, num_res_blocks, head_channels, dropout, gradient_checkpointing
        )
        self.out_channels = out_channels
        num_features = sum(self.skip_channels) + channels[-1]
        self.out = nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(), nn.Linear(hidden, out_channels))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The numbers told of images x: b c *s with noise of times t: b; -> b out."""
        numbers: Tensor = self.out(self.features(x, t))
        return numbers

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """Features of the first convolution, of every block and of the middle, averaged over the image; b f."""
        blocks, middle = self.contract(x, self.time(t))
        return cat([h.flatten(2).mean(2) for h in (*blocks, middle)], dim=1)
