"""Where the content of a written image comes from, in the words that every format carries.

What was made from a patient's image is no synthetic image, however much of it a network has drawn: it shows that
patient. So it has words of its own, in file names, manifests and headers.
"""

from __future__ import annotations

from typing import Literal

Origin = Literal["synthetic", "reconstruction", "completion"]
"""synthetic: from noise (and attributes); reconstruction: of a given image; completion: of given parts of one."""

FILE_NAMES: dict[Origin, str] = {"synthetic": "sample", "reconstruction": "reconstruction", "completion": "completion"}
"""What the name of an image's file begins with."""

WRITTEN: dict[Origin, str] = {
    "synthetic": "samples in {}",
    "reconstruction": "reconstructions of patients' images in {}, as private as the scans",
    "completion": "completions of patients' images in {}, as private as the scans",
}
"""What the line about written images says of them and their folder."""

STATEMENTS: dict[Origin, str] = {
    "synthetic": "SYNTHETIC image made by a generative model; not acquired from a patient, not for diagnosis.",
    "reconstruction": "RECONSTRUCTION by a neural network, derived from a patient's image and as private as that; "
    "not for diagnosis.",
    "completion": "COMPLETION by a generative model, derived from parts of a patient's image and as private as that; "
    "not for diagnosis.",
}
"""What comments and text chunks say."""

SHORT: dict[Origin, str] = {
    "synthetic": "SYNTHETIC lit_medgen",
    "reconstruction": "RECONSTRUCTION derived from a patient's image, lit_medgen",
    "completion": "COMPLETION derived from a patient's image, lit_medgen",
}
"""The same in the 79 bytes of a NIfTI description."""
