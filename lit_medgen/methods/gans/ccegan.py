r"""CCE-GAN: an autoencoding GAN with cycles of codes, whose codes are brought to the prior by optimal transport.

Xing et al. "Cycle Consistent Embedding of 3D Brains with Auto-Encoding Generative Adversarial Networks". MIDL 2021.
With z ~ N(0, I), the code z^ = E(x) of an image x and its reconstruction x^ = G(z^):

    shared         L = w |x^ - x|_1 - D(x^) + v mean |E(x^) - z^|^2 + v mean |E(G(z)) - z|^2
    generator:     L - D(G(z))
    encoder:       L + a W(codes, prior)
    discriminator: D(x^) + D(G(z)) - 2 D(x) + lambda (penalty between x and G(z) + that between x and x^)

with three updates of the discriminator for each of the others. W, for each channel of a code, is a transport of codes
to as many draws of the prior: `sliced`, or `sinkhorn`. A batch of four has not the codes that say how they are
distributed, so the newest codes of earlier batches stand beside its own (`bank`), without a gradient; what is minimised
is the cost of the batch's own. Between few points of many channels all distances are alike, and a transport in all
channels at once costs least for codes near zero; along one direction it does not, so sliced is the default.

The public notebook takes the generator's gradient twice, never that of L for the encoder, which the transport alone
trains; and it transports not codes but channels, each a point of as many coordinates as the batch has images, so that
channels may be permuted and no distribution of codes is asked for. `faithful` does these, over six batches of its own:
two updates of the generator, one of the encoder, three of the discriminator. With `norm` and `discriminator_norm` of
the network `batch` it is that notebook but for three things: there, the discriminator's three updates see the same made
images, each update's real images are its own, and Sinkhorn's iterations may stop early.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from lit_medgen.batch import Batch
from lit_medgen.methods.gans.autoencoding import WassersteinAutoencodingGAN
from lit_medgen.methods.gans.transport import random_directions, sinkhorn, sliced_wasserstein
from lit_medgen.networks.protocols import AutoencodingNetwork

EPSILON = 0.1
"""Weight of the entropy in Sinkhorn's transport, beside squared distances: those of channels in the public code, and
otherwise of codes, for each channel."""


class CCEGAN(WassersteinAutoencodingGAN):
    """An autoencoder and a discriminator, with cycles from codes to images and back.

    Args:
        network: generator, encoder and discriminator.
        alignment: how the codes are brought to the prior, `sliced` or `sinkhorn`.
        reconstruction_weight: w.
        cycle_weight: v.
        alignment_weight: a.
        discriminator_updates: of the discriminator, for each of the others.
        bank: codes that are transported at once, the batch's own and the newest of earlier batches; kept in
            checkpoints.
        num_directions: directions of the sliced transport, drawn anew in every step.
        faithful: what the public notebook did; see above.
        others: see `WassersteinAutoencodingGAN`.
    """

    bank: Tensor

    def __init__(
        self,
        network: AutoencodingNetwork,
        alignment: Literal["sliced", "sinkhorn"] = "sliced",
        reconstruction_weight: float = 100.0,
        cycle_weight: float = 50.0,
        alignment_weight: float = 100.0,
        discriminator_updates: int = 3,
        bank: int = 64,
        num_directions: int = 128,
        faithful: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(network, **others)
        for name, value in (("discriminator_updates", discriminator_updates), ("bank", bank)):
            if value < 1:
                raise ValueError(f"model.init_args.{name} is {value}; give at least 1.")
        self.alignment, self.num_directions, self.faithful = alignment, num_directions, faithful
        self.reconstruction_weight, self.cycle_weight = reconstruction_weight, cycle_weight
        self.alignment_weight = alignment_weight
        self.every = (3, 6, 2) if faithful else (discriminator_updates, discriminator_updates, 1)
        # Draws of the prior, until there are codes: what the codes should look like.
        self.register_buffer("bank", torch.randn(bank, network.latent_channels))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The generator's loss, and its parts."""
        shared, made, _, parts = self._shared(batch)
        judged = self.network.discriminator(made).float().mean()
        return {"loss": shared - judged, "discriminator_of_made": judged} | parts

    def encoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The encoder's loss, and what it takes to bring its codes to the prior."""
        if self.faithful:
            code = self.network.encoder(batch.image)
            alignment = sinkhorn(code.mT, self.codes(len(code)).mT, EPSILON).mean()
            return {"encoder_loss": self.alignment_weight * alignment, "alignment": alignment}
        shared, _, code, _ = self._shared(batch)
        alignment = self._aligned(code)
        self._remember(code.detach())
        return {"encoder_loss": shared + self.alignment_weight * alignment, "alignment": alignment}

    def _shared(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """L, images made of the prior, b c *s, codes of the batch, b d, and what L is made of."""
        encoder, generator, prior = self.network.encoder, self.network.generator, self.codes(len(batch.image))
        code = encoder(batch.image)
        reconstructed, made = generator(code), generator(prior)
        parts = {
            "l1": l1_loss(reconstructed.float(), batch.image),
            "cycle_of_codes": mse_loss(encoder(reconstructed).float(), code.float()),
            "cycle_of_prior": mse_loss(encoder(made).float(), prior),
        }
        cycles = parts["cycle_of_codes"] + parts["cycle_of_prior"]
        judged = self.network.discriminator(reconstructed).float().mean()
        shared = self.reconstruction_weight * parts["l1"] + self.cycle_weight * cycles - judged
        return shared, made, code, parts

    def _aligned(self, code: Tensor) -> Tensor:
        """Mean cost of the batch's codes in the transport of theirs and the bank's to the prior, for each channel."""
        points = torch.cat([code.float(), self.bank])[: max(len(self.bank), len(code))]
        prior, channels = self.codes(len(points)), points.shape[1]
        if self.alignment == "sinkhorn":
            costs = sinkhorn(points / channels**0.5, prior / channels**0.5, EPSILON)
        else:
            directions = random_directions(self.num_directions, channels, points.device)
            costs = sliced_wasserstein(points, prior, directions)
        return costs[: len(code)].mean()

    def _remember(self, code: Tensor) -> None:
        """Puts codes, b d, before those of the bank, whose oldest go; of all processes, so that each has the same."""
        if self._trainer and self.trainer.world_size > 1:
            code = cast(Tensor, self.all_gather(code)).flatten(0, 1)
        self.bank = torch.cat([code.float(), self.bank])[: len(self.bank)]
