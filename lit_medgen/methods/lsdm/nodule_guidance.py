r"""Guidance by a classifier of crops, inside the nodules of label maps alone (Zu 2023, section 3.4.1).

    g = M grad_{z_t} log p(y | Crop(D(z_t)), t)                                                      (eq. 3.7 and 3.8)

The crop lies around the largest nodule of the map. Beyond the border of the latent it holds that of background without
noise. M is 1 in the nodules, grown. Shapes: b images, d latent channels, *z axes of the latent, *k axes of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_medgen.batch import sent
from lit_medgen.diffusion import LogLikelihood, Schedule, Term
from lit_medgen.methods.crop_classifier import CropClassifier
from lit_medgen.training.latent_crops import LatentCrops
from lit_medgen.training.latent_scale import LatentScale


@dataclass(frozen=True)
class Wish:
    """How an attribute of a nodule, which a classifier tells, guides sampling.

    Attributes:
        scale: factor of its gradient, s of eq. 3.6.
        interval: two times in [0, 1]: it guides after the first, up to and with the second.
        group: order of the gradients: those of the groups before have moved the latent already, those of the same group
            are taken at the same latent and summed.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    group: int = 0

    def __post_init__(self) -> None:
        """ValueError for what is no interval of times."""
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(
                f"model.init_args.guidance: interval is {list(self.interval)}; give two times in [0, 1], the smaller "
                "first."
            )


LAST: Mapping[str, Wish] = {"malignant": Wish(group=1)}
"""Attributes that guide after the others unless told otherwise (section 3.4.1, the last paragraph)."""


@dataclass(frozen=True)
class GuidedNodules:
    """The nodules of a batch, and the classifier that sees them.

    Attributes:
        guide: the classifier.
        schedule: of the model that is guided.
        scale: of its latents.
        crops: where the nodules are.
        mask: b 1 *z, bool: where the latent is guided.
        background: d, the normalised latent of background.
    """

    guide: CropClassifier
    schedule: Schedule
    scale: LatentScale
    crops: LatentCrops
    mask: Tensor
    background: Tensor

    def crop(self, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents around the nodules as the classifier takes them, b d *k, and their times there, b.

        Gradients reach the masked part of z_t: b d *z alone.
        """
        alpha_t, _ = self.schedule.alpha_sigma(t)
        inner = torch.where(self.mask, z_t, z_t.detach())
        crops = self.crops.read(inner, alpha_t[:, None] * self.background)
        return self.guide.at_its_scale(crops, t, self.scale)

    def log_likelihood(self, wishes: Mapping[str, Wish], wanted: Mapping[str, Tensor]) -> LogLikelihood:
        """The sum of log p of what is wanted (name -> b, on the device), with the scales of the wishes, in one pass."""

        def log_likelihood(z_t: Tensor, t: Tensor) -> Tensor:
            """The log-likelihood of each image, b, from noisy latents b d *z and times b."""
            found = self.guide.log_likelihoods(*self.crop(z_t, t), {name: wanted[name] for name in wishes})
            return torch.stack([wish.scale * found[name] for name, wish in wishes.items()]).sum(0)

        return log_likelihood

    def groups(self, wishes: Mapping[str, Wish], asked: Mapping[str, Tensor], scale: float) -> list[list[Term]]:
        """The likelihoods that guide, group by group; none where nothing is asked of any nodule.

        Attributes of a group that guide at the same times share one evaluation of decoder and classifier.

        Args:
            wishes: how each attribute guides.
            asked: attribute -> b, NaN for nothing; on the CPU, or this waits for its device.
            scale: factor of all gradients.
        """
        names = [name for name, wish in wishes.items() if name in asked and wish.scale * scale != 0]
        if not names:
            return []
        known = torch.stack([asked[name].float() for name in names]).cpu().masked_fill(~self.crops.found, torch.nan)
        wanted = dict(zip(names, known, strict=True))
        together: dict[int, dict[tuple[float, float], dict[str, Wish]]] = {}
        for name, value in wanted.items():
            if not value.isnan().all():
                wish = wishes[name]
                together.setdefault(wish.group, {}).setdefault(wish.interval, {})[name] = wish
        values = {name: sent(value, self.mask.device) for name, value in wanted.items()}
        return [
            [Term(self.log_likelihood(some, values), scale, interval) for interval, some in together[group].items()]
            for group in sorted(together)
        ]
