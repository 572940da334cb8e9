"""Names along the axes of images: slices of a RAS volume (x right, y anterior, z superior), and channels.

Without PyTorch, so that workers start without it.
"""

from collections.abc import Sequence

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis along which each kind of slice is stacked."""
COLOURS = ("red", "green", "blue")
"""Names of the channels of a colour image."""


def is_colour(channel_names: Sequence[str]) -> bool:
    """Whether channels of these names are red, green and blue, which figures and files show as one picture."""
    return tuple(name.lower() for name in channel_names) == COLOURS


def backward(orientation: str) -> tuple[int, ...]:
    """The axes of an image that go left, posterior or inferior, against those of a RAS volume, from its codes."""
    return tuple(axis for axis, code in enumerate(orientation) if code in "LPI")
