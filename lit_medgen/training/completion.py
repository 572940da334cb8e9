"""A given region of images: what a diffusion model keeps of them while it makes the rest.

A model in image space knows each voxel of the region. A model in latents knows each cell of the latent map whose voxels
are all given; the encoder sees the others filled in from these, so nothing of what is to be made anew reaches the
result. In the images that come out, given voxels are those of the given image, exactly.

Shapes: b images, c channels, *s their axes; d channels and *z axes of what noise is added to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_medgen.batch import Condition, DataSpec, sent
from lit_medgen.diffusion import Completing, Denoises, filled_in, wholly_observed
from lit_medgen.errors import InputError


@dataclass(frozen=True)
class GivenRegion:
    """What is given of images that are completed.

    Attributes:
        image: b c *s in [-1, 1], read where `observed` is true.
        observed: b 1 *s, bool.
    """

    image: Tensor
    observed: Tensor

    @classmethod
    def of(cls, condition: Condition, spec: DataSpec, device: torch.device) -> GivenRegion | None:
        """The region that a condition gives, on the device; None for none. InputError for another size."""
        if condition.image is None or condition.observed is None:
            return None
        for part, expected in (("image", (spec.channels, *spec.size)), ("observed", (1, *spec.size))):
            if (found := tuple(getattr(condition, part).shape[1:])) != expected:
                raise InputError(f"condition.{part} has the shape {found}; this model expects {expected}.")
        return cls(sent(condition.image.float(), device), sent(condition.observed, device))

    def known_to(self, denoiser: Denoises, noised_of: Callable[[Tensor], Tensor], size: tuple[int, ...]) -> Denoises:
        """The denoiser, which knows the region.

        Args:
            denoiser: of images, or of what `noised_of` makes of them.
            noised_of: images -> what noise is added to, b c *s -> b d *z.
            size: *z.
        """
        known = wholly_observed(self.observed, size)
        return Completing(denoiser, noised_of(filled_in(self.image, self.observed)), known)

    def kept_in(self, made: Tensor) -> Tensor:
        """Images that were made, b c *s, with the given voxels in them."""
        return torch.where(self.observed, self.image.to(made.dtype), made)
