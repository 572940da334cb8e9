"""Damaged image files, for the readers of every format."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Image = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def leaks(mutant: Callable[[bytes, np.random.Generator], bytes]) -> Callable[..., list[str]]:
    """A function that damages a file many times, and tells what a reader then did but give an image or a ValueError."""

    def found(path: Path, num: int, read: Callable[[], Image]) -> list[str]:
        content, random, faults = path.read_bytes(), np.random.default_rng(0), []
        for _ in range(num):
            path.write_bytes(mutant(content, random))
            try:
                with warnings.catch_warnings(action="ignore"):
                    voxels, affine = read()
                assert np.isfinite(voxels).all()
                assert np.isfinite(affine).all()
            except ValueError:
                continue
            except Exception as error:  # the test is that there is none
                faults.append(repr(error))
        return faults

    return found
