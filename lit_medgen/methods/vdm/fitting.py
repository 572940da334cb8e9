"""What of a VDM must be as it was when it was trained, and which likelihood fits which images."""

from __future__ import annotations

from torch import Tensor

from lit_medgen.diffusion import Likelihood
from lit_medgen.errors import InputError

MAX_OFF_GRID = 0.01
"""Of a step between two grey values: rounding of single precision, also of 16 bits."""


def described(likelihood: Likelihood) -> str:
    """A likelihood in words, by which that of a checkpoint is compared."""
    values = {name: getattr(likelihood, name) for name in ("num_values", "scale") if hasattr(likelihood, name)}
    return " ".join([type(likelihood).__name__, *(f"{name}={value}" for name, value in values.items())])


def refuse_other_values(likelihood: Likelihood, images: Tensor) -> None:
    """InputError if images, b c *s in [-1, 1], have values between the grey values that a likelihood knows."""
    num = getattr(likelihood, "num_values", None)
    if num is None:
        return
    values = (images.double() + 1) * (num - 1) / 2
    if float((values - values.round()).abs().max()) > MAX_OFF_GRID:
        raise InputError(
            f"model.init_args.likelihood.init_args.num_values is {num}, but images have values between these; give "
            "256 for images of 8 bits, 65536 for 16, or Gaussian with num_values null, a density."
        )
