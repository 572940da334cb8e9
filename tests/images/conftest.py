"""What the tests of image files share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture(scope="session")
def mutant() -> Callable[[bytes, np.random.Generator], bytes]:
    """A function that damages the bytes of a file."""
    return _mutant


def _mutant(content: bytes, random: np.random.Generator) -> bytes:
    """The bytes of a file with one fault: cut off, some bytes overwritten, or a piece missing."""
    damaged = bytearray(content)
    first = int(random.integers(len(content)))
    match int(random.integers(4)):
        case 0:
            return content[:first]
        case 1:
            del damaged[first : first + int(random.integers(1, 64))]
        case 2:  # headers come first, and hold most of the faults
            damaged[first % 400 : first % 400 + 2] = random.bytes(2)
        case _:
            damaged[first : first + 4] = random.bytes(4)
    return bytes(damaged)
