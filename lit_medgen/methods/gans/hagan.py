r"""HA-GAN: a generator that makes whole images, trained on a sub-volume of each and on small copies of them.

Sun et al. "Hierarchical Amortized GAN for 3D High Resolution Medical Image Synthesis". IEEE JBHI 26(8), 2022.

    A = G^A(z), z ~ N(0, I)        latent grid at a quarter of the size;  S: a window of an eighth of the planes
    discriminator:  BCE(D(x[S], small x), 1) + BCE(D(G^H(A[S]), G^L(A)), 0)
    generator:      BCE(D(G^H(A[S]), G^L(A)), 1)
    encoder:        |G^H(E^H(x[S])) - x[S]|
    sub-encoder:    |G^H(G^A(z')[S]) - x[S]| / 2 + |G^L(G^A(z')) - small x| / 2,    z' = E^G(E^H(x)), E^H held

Memory is that of a sub-volume, of the generator as of the encoder, which sees the whole image slab by slab.

The encoders train themselves alone, as in the public code; both follow the generator and are not needed to sample.
What differs from that code, and what `faithful` brings back:

- A window begins at the same voxel in real images as in made ones. In the code it does only for a quarter of all
  draws: it draws one of 113 voxels and cuts the latent grid at the plane that the voxel lies in, so that real windows
  lie up to three voxels further on.
- What is made of a window is what the whole image has there (`lit_medgen.networks.gans.hierarchical`). In the code
  convolutions see zeros at the cut, as they never do in sampling.
- Small real images are means of blocks. The code takes one voxel of each.

Besides, the code updates the discriminator first, and reads the training images in one order, which it never shuffles.
With `faithful` and the network's `norm: group` it is that code's model but for the sub-encoder's leaky activations.
One window serves all images of a batch, in the code as here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional

from lit_medgen.batch import Batch
from lit_medgen.methods.gans.gan import GAN
from lit_medgen.networks.gans.hierarchical import HierarchicalGAN
from lit_medgen.training.adversarial import Player
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer


@dataclass(frozen=True)
class Window:
    """Where sub-volumes are cut.

    Attributes:
        first: their first latent plane.
        voxel: the first plane of real images.
        position: where that is, from 0 for the first possible one to 1.
    """

    first: int
    voxel: int
    position: float


class HAGAN(GAN):
    """A generator of whole images that is trained on parts of them.

    Args:
        network: generator, discriminator and both encoders.
        encoder_optimizer: of the encoder of sub-volumes.
        sub_encoder_optimizer: of the encoder of latent grids.
        encoder_learning_rate_schedule: factor of the rate of both encoders at each of their steps; None: constant.
        faithful: windows, their borders and small images as in the public code; see above.
        others: see `GAN`.
    """

    network: HierarchicalGAN

    def __init__(
        self,
        network: HierarchicalGAN,
        encoder_optimizer: OptimizerCallable = default_optimizer,
        sub_encoder_optimizer: OptimizerCallable = default_optimizer,
        encoder_learning_rate_schedule: Constant | None = None,
        faithful: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(network, **others)
        self.make_encoder_optimizer, self.make_sub_encoder_optimizer = encoder_optimizer, sub_encoder_optimizer
        self.encoder_learning_rate_schedule = encoder_learning_rate_schedule or Constant()
        self.faithful = faithful

    def players(self) -> Sequence[Player]:
        """The generator, the discriminator, the encoder of sub-volumes and that of latent grids, once a batch each."""
        net, schedule = self.network, self.encoder_learning_rate_schedule
        encoder = Player(
            "encoder", self.encoder_loss, [net.encoder], self.make_encoder_optimizer, schedule, averaged=False
        )
        sub_encoder = Player(
            "sub_encoder",
            self.sub_encoder_loss,
            [net.sub_encoder],
            self.make_sub_encoder_optimizer,
            schedule,
            averaged=False,
        )
        return self.generator_player(), self.discriminator_player(), encoder, sub_encoder

    # Windows, and what is seen through them.

    def window(self) -> Window:
        """A window, drawn from torch's generator on the CPU."""
        parts = self.network.parts
        step = 1 if self.faithful else parts.factor
        last = (parts.starts - 1) * parts.factor
        voxel = step * int(torch.randint(last // step + 1, ()))
        return Window(voxel // parts.factor, voxel, voxel / max(1, last))

    def real(self, batch: Batch, window: Window) -> tuple[Tensor, Tensor]:
        """Sub-volumes, b c n *s, and small copies, b c *z, of real images."""
        parts, image = self.network.parts, self.network.halvings.padded(batch.image)
        seen = image.narrow(2, window.voxel, parts.length * parts.factor)
        scale = 1 / parts.factor
        mode = "nearest" if self.faithful else "area"
        return seen, functional.interpolate(image, scale_factor=scale, mode=mode)

    def made(self, codes: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """The same of the images of codes."""
        generator = self.network.generator
        latents = generator.latents(codes)
        return generator.sub_volume(latents, window.first, not self.faithful), generator.small(latents)

    def reconstructed(self, batch: Batch, window: Window) -> Tensor:
        """Sub-volumes of the latents of real ones, b c n *s."""
        network = self.network
        if not self.faithful:
            return network.reconstructed(network.halvings.padded(batch.image), window.first)
        seen, _ = self.real(batch, window)
        return network.generator.image_of_planes(network.encoder(seen), window.first, window.first)

    def encoded(self, batch: Batch) -> Tensor:
        """The codes of real images, b d; the encoder of sub-volumes is held, and sees one after the other."""
        network, image = self.network, self.network.halvings.padded(batch.image)
        with torch.no_grad():
            latents = network.in_tiles(lambda first, num: network.encoded(image, first, num, not self.faithful))
        codes: Tensor = network.sub_encoder(latents)
        return codes

    # The losses.

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The generator's; in evaluation also how well the encoders reconstruct."""
        window = self.window()
        made = self.made(self.codes(len(batch.image)), window)
        logits = self.network.discriminator(*made, window.position).float()
        loss = {"loss": functional.softplus(-logits).mean()}
        return loss if self.training else loss | self.encoder_loss(batch) | self.sub_encoder_loss(batch)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The discriminator's, and its mean logits, of real and made images."""
        window, discriminator = self.window(), self.network.discriminator
        with torch.no_grad():
            made = self.made(self.codes(len(batch.image)), window)
        of_real = discriminator(*self.real(batch, window), window.position).float()
        of_made = discriminator(*made, window.position).float()
        return {
            "discriminator_loss": functional.softplus(-of_real).mean() + functional.softplus(of_made).mean(),
            "discriminator_of_real": of_real.mean(),
            "discriminator_of_made": of_made.mean(),
        }

    def encoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean absolute error of sub-volumes made of their own latents."""
        window = self.window()
        seen, _ = self.real(batch, window)
        return {"encoder_loss": functional.l1_loss(self.reconstructed(batch, window).float(), seen)}

    def sub_encoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Half the mean absolute error of sub-volumes, and half that of small images, made of the images' codes."""
        window = self.window()
        errors = [
            functional.l1_loss(made.float(), real)
            for made, real in zip(self.made(self.encoded(batch), window), self.real(batch, window), strict=True)
        ]
        return {"sub_encoder_loss": torch.stack(errors).mean()}
