"""What of a VDM fits what: networks the latents that they see, a likelihood that of a checkpoint."""

from __future__ import annotations

from torch import nn

from lit_medgen.diffusion import Likelihood
from lit_medgen.errors import InputError


def described(likelihood: Likelihood) -> str:
    """A likelihood in words, by which that of a checkpoint is compared."""
    values = {name: getattr(likelihood, name) for name in ("num_values", "scale") if hasattr(likelihood, name)}
    return " ".join([type(likelihood).__name__, *(f"{name}={value}" for name, value in values.items())])


def refuse_other(key: str, module: nn.Module, channels: int, size: tuple[int, ...], of: str) -> None:
    """InputError if a network does not take so many channels, or maps of this size."""
    key = f"model.init_args.{key}"
    for name, expected in (("dim", len(size)), ("in_channels", channels), ("out_channels", channels)):
        if (found := getattr(module, name, expected)) != expected:
            raise InputError(
                f"{key}.init_args.{name} is {found}, but {of} have {len(size)} axes and {channels} channels; give "
                f"{expected}."
            )
    own, divisor = getattr(module, "size", size), getattr(module, "divisor", 1)
    if tuple(own) != size or any(side % divisor for side in size):
        needed = f"multiples of {divisor}" if tuple(own) == size else " x ".join(map(str, own))
        raise InputError(f"{key}: {of} are {' x '.join(map(str, size))}, but it takes {needed}; change one of them.")
