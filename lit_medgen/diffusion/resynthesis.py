r"""Counterparts: an image taken part of the way to noise, and back as a model would rather have it.

Where a model was trained on healthy people, or is guided to them, what it changes on the way back is what it did not
expect. Two ways lead to the noise:

    inversion  DDIM's formulas along rising times, so that the way back returns the image, but for what guidance
               changes (Wolleb et al. 2022, "Diffusion Models for Medical Anomaly Detection", section 2; classifier-free
               guidance as in Sanchez et al. 2022, "What is Healthy? Generative Counterfactual Diffusion for Lesion
               Localization")
    noise      x_t = alpha_t x + sigma_t eps, and back by ancestral steps: unusual content is lost in the noise and made
               anew (Wyatt et al. 2022, "AnoDDPM: Anomaly Detection with Denoising Diffusion Probabilistic Models")

Inversion without guidance is no detector: it returns every image. Nothing is clipped on its way, or it could not be
undone; after plain noise x̂ is kept within the range of images.

Shapes: b images, d channels and *z axes of what noise is added to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion.denoisers import Denoises
from lit_medgen.diffusion.gaussian import GaussianProcess
from lit_medgen.diffusion.samplers import DDIM, NoiseLike, Spacing


@dataclass(frozen=True)
class Resynthesis:
    """How far an image goes towards noise, and how it comes back.

    Attributes:
        level: the time in (0, 1] at which it turns around.
        num_steps: steps of each way.
        noised: whether plain noise leads there instead of the inversion.
        guidance: scale of classifier-free guidance on the way back: 0 is the model without a condition, 1 the
            conditional one.
    """

    level: float = 0.5
    num_steps: int = 100
    noised: bool = False
    guidance: float = 3.0

    def __post_init__(self) -> None:
        """ValueError for no time, no step, or a scale of guidance that is no number or below 0."""
        if not 0 < self.level <= 1:
            raise ValueError(f"level is {self.level}; give a time above 0 and at most 1.")
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; give at least 1.")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance is {self.guidance}; give 0 or more.")

    def __call__(
        self, x: Tensor, plain: Denoises, back: Denoises, null: Condition, asked: Condition, noise: NoiseLike
    ) -> Tensor:
        """The counterparts of x, b d *z each.

        Args:
            x: data without noise.
            plain: the model that inverts, called with `null`.
            back: the model that leads back, guided or not, called with `asked`.
            null: the condition with everything absent that is asked for.
            asked: what the counterparts should show.
            noise: standard normal noise.
        """
        spacing: Spacing = "trailing" if plain.schedule.ends_in_noise else "log_snr"
        if not self.noised:
            walk = DDIM(self.num_steps, spacing)
            return walk.restored(back, walk.invert(plain, x, self.level, null), self.level, asked)
        t = torch.full((len(x),), self.level, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        x_t = GaussianProcess(plain.schedule).perturb(x, t, noise(x))
        return DDIM(self.num_steps, spacing, eta=1.0)(back, x_t, asked, noise, start=self.level)
