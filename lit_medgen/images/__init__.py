"""Image files in and out: NIfTI, DICOM, PNG and figures, geometry kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_image(path: Path | list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a NIfTI or PNG file, or of the files of a DICOM series.

    ValueError if the content is bad; the text does not repeat the path.
    """
    from lit_medgen.images.dicom import read_series
    from lit_medgen.images.nifti import read_nifti
    from lit_medgen.images.png import read_png

    if isinstance(path, list):
        return read_series(path)
    return read_png(path) if path.suffix.lower() == ".png" else read_nifti(path)
