"""What of a VDM must be as it was when it was trained."""

from __future__ import annotations

from lit_medgen.diffusion import Likelihood


def described(likelihood: Likelihood) -> str:
    """A likelihood in words, by which that of a checkpoint is compared."""
    values = {name: getattr(likelihood, name) for name in ("num_values", "scale") if hasattr(likelihood, name)}
    return " ".join([type(likelihood).__name__, *(f"{name}={value}" for name, value in values.items())])
