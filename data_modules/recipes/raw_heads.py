"""Raw heads: a scan as the hospital delivers it becomes a brain.

denoise    curvature flow (Sethian 1996), which smooths along edges and not across them
unbias     N4 (Tustison et al. 2010, "N4ITK: Improved N3 Bias Correction")
strip      the MNI152 template is brought onto the head affinely and its mask taken over; or by an external tool, such
           as HD-BET or SynthStrip
register   the head is brought affinely into the template's space

Field and registration are found on a 2 mm copy of the head, along the axes of the world whatever the scan's are, and
applied to the head itself, which is not resampled: each changes little between voxels.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_modules.recipes.resampling import resample
from lit_medgen.errors import InputError, describe
from lit_medgen.images.nifti import read_nifti, write_nifti

REGISTRATION = "registration"
NONE = "none"
HOTTEST = 4.0
"""Times the 99.5th percentile, above which a voxel is cut down; the brightest of 16 heads of IXI are at 2.0 to 3.1."""
PLAUSIBLE_ML = (500.0, 2500.0)
"""Volume inside a skull, from small children's to the largest."""


@dataclass(frozen=True)
class RawHead:
    """What is done to a raw head, in this order.

    Args:
        denoise: iterations of curvature flow; 0 for none.
        unbias: correct the field of the coil.
        strip: `registration`, `none`, or the command of an external tool with {input} and {output} where it takes its
            NIfTI files, e.g. "hd-bet -i {input} -o {output}" or "mri_synthstrip -i {input} -o {output}".
        register: bring the head into the template's space (affine, 12 parameters).
    """

    denoise: int = 0
    unbias: bool = True
    strip: str = REGISTRATION
    register: bool = False

    def __post_init__(self) -> None:
        if self.denoise < 0:
            raise InputError(f"data.init_args.preprocessing.raw_head.denoise is {self.denoise}; give 0 or more.")
        if self._command and not all(word in self.strip for word in ("{input}", "{output}")):
            raise InputError(
                f"{self._strip_is}; give {REGISTRATION}, {NONE} or a command with {{input}} and {{output}}."
            )
        try:
            shlex.split(self.strip)
        except ValueError as error:
            raise InputError(f"{self._strip_is}, which is no command: {error}.") from error

    @property
    def _strip_is(self) -> str:
        return f"data.init_args.preprocessing.raw_head.strip is '{self.strip}'"

    @property
    def _command(self) -> bool:
        return self.strip not in (REGISTRATION, NONE)

    def tools(self) -> str:
        """Every tool that is used, with its version, if it tells one. InputError if a program is missing."""
        registers = self.register or self.strip == REGISTRATION
        names = (["SimpleITK"] if registers or self.unbias or self.denoise else []) + (["nilearn"] if registers else [])
        found = [f"{name} {version(name)}" for name in names]
        return ", ".join([*found, *([_version(shlex.split(self.strip)[0])] if self._command else [])])

    def __call__(self, voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The head's voxels x y z after all steps, and the matrix from its world to that of the result, mm.

        ValueError if it is no head, or what is left cannot be a brain.
        """
        if voxels.ndim != 3:
            raise ValueError(f"an image of {voxels.ndim} dimensions; raw_head expects a volume")
        try:
            return self._of_head(voxels, affine)
        except RuntimeError as error:  # SimpleITK's, which ends with what is wrong
            said = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"SimpleITK fails on it ({said}); is it a whole head?") from error

    def _of_head(self, voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from data_modules.recipes import registration  # SimpleITK: every start would wait for it, few runs need it

        # The brightest tissue is not far above the percentile; one voxel of 32767 would take all grey levels of the
        # registration, and smoothing and N4 have absolute thresholds. A power of 2 changes no digit.
        bright = float(np.percentile(voxels, 99.5))
        unit = np.float32(2.0 ** np.round(np.log2(bright / 1000))) if bright > 0 else np.float32(1)
        voxels = np.clip(voxels, 0, HOTTEST * bright if bright > 0 else None).astype(np.float32) / unit
        if self.denoise:
            voxels = registration.denoised(voxels, self.denoise)
        grid, size = registration.grid_of(voxels.shape, affine)
        if self.unbias:
            field = registration.log_field(resample(voxels, affine, size, grid), grid)
            voxels = voxels / np.exp(resample(field, grid, voxels.shape, affine))
        to_template = np.eye(4)
        if self.register or self.strip == REGISTRATION:
            onto = registration.Template(resample(voxels, affine, size, grid), grid)
            to_template = onto.matrix if self.register else to_template
        match self.strip:
            case "registration":
                voxels = voxels * (resample(onto.mask(), grid, voxels.shape, affine) > 0.5)
            case "none":
                return voxels * unit, to_template
            case _:
                voxels = voxels * _by_command(self.strip, voxels, affine)
        _check(voxels > 0, affine)
        return voxels * unit, to_template


def _check(inside: np.ndarray, affine: np.ndarray) -> None:
    volume_ml = float(inside.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    if not PLAUSIBLE_ML[0] <= volume_ml <= PLAUSIBLE_ML[1]:
        raise ValueError(
            f"skull stripping left {volume_ml:.0f} mL; expected a brain of {PLAUSIBLE_ML[0]:.0f} to "
            f"{PLAUSIBLE_ML[1]:.0f} mL: is it a whole head, and is its affine right?"
        )


@cache
def _version(program: str) -> str:
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        raise InputError(
            f"data.init_args.preprocessing.raw_head.strip: no program '{program}' on this machine ({describe(error)}); "
            f"install it, or give its full path, or {REGISTRATION}."
        ) from error
    except subprocess.TimeoutExpired:
        return f"{Path(program).name} (version unknown)"
    said = (answer.stdout + answer.stderr).strip().splitlines()
    return f"{Path(program).name} {said[0] if answer.returncode == 0 and said else '(version unknown)'}"


def _by_command(command: str, voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where the stripped volume that an external tool writes is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "head.nii.gz"), Path(folder, "brain.nii.gz")
        write_nifti(given, voxels, affine, "")
        words = [word.replace("{input}", str(given)).replace("{output}", str(made)) for word in shlex.split(command)]
        answer = subprocess.run(words, capture_output=True, text=True, check=False)
        if answer.returncode or not made.is_file():
            said = (answer.stderr or answer.stdout).strip().splitlines()
            raise ValueError(
                f"`{words[0]}` ended with code {answer.returncode} and {'an' if made.is_file() else 'no'} output; "
                f"it said: {said[-1] if said else 'nothing'}"
            )
        try:
            brain, _ = read_nifti(made, "sform", finite=False)  # it lies on the grid of what was given
        except ValueError as error:
            raise ValueError(f"`{words[0]}` wrote a volume that is none: {describe(error)}") from error
        if brain.shape != voxels.shape:
            raise ValueError(f"`{words[0]}` wrote a volume of {brain.shape}; expected {voxels.shape}")
        return brain > 0
