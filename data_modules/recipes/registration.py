"""Through SimpleITK: noise, the field of the coil, and the MNI152 template brought onto a head.

Every image here lies on a grid along the axes of the world, so it has no direction, and all go by our axes (RAS) where
SimpleITK's own reader would say LPS. One thread: sums come out alike on every machine, and heads are what runs in
parallel.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import SimpleITK as sitk  # noqa: N813 (as all its users call it)

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

GRID_MM = 2
MAX_MM = 700
"""Extent of a volume: a wrong voxel size would fill the memory."""
START_SCALE = 0.9
"""The template is larger than most brains, and from a start that is too large it may come to fit the whole head."""
STARTS_MM = (0.0, -15.0, 15.0)
"""Above the middle of the skull, which is guessed: a hat, a coil or much neck misleads."""
MIN_AGREEMENT = 0.2
"""Mutual information; 0.29 to 0.37 on 16 heads of IXI, 0.05 to 0.13 where the template had come to fit the scalp."""


def denoised(voxels: np.ndarray, iterations: int) -> np.ndarray:
    """x y z after so many steps of curvature flow."""
    # Without spacing, so in voxels: 1/16 is then stable in 3D.
    flowed = sitk.CurvatureFlow(sitk.GetImageFromArray(voxels), timeStep=0.0625, numberOfIterations=iterations)
    return np.asarray(sitk.GetArrayFromImage(flowed), dtype=np.float32)


def grid_of(shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and size of the world-aligned grid of `GRID_MM` that holds a volume."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*(np.array(shape) - 1), 1]
    world = (corners @ affine.T)[:, :3]
    low, high = world.min(0), world.max(0)
    if (high - low).max() > MAX_MM:
        raise ValueError(f"it is {(high - low).max():.0f} mm long; expected {MAX_MM} at most: is its affine right?")
    grid = np.diag([GRID_MM] * 3 + [1.0])
    grid[:3, 3] = low
    return grid, tuple(int(n) for n in np.ceil((high - low) / GRID_MM) + 1)


def _image(voxels: np.ndarray, grid: np.ndarray) -> sitk.Image:
    """SimpleITK's image of a volume on a world-aligned grid."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T, dtype=np.float32))
    image.SetSpacing([float(side) for side in np.diag(grid)[:3]])
    image.SetOrigin([float(mm) for mm in grid[:3, 3]])
    return image


def _voxels(image: sitk.Image) -> np.ndarray:
    return np.asarray(sitk.GetArrayFromImage(image), dtype=np.float32).T


def _foreground(head: sitk.Image) -> sitk.Image:
    return sitk.OtsuThreshold(head, 0, 1, 200)


def log_field(head: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The logarithm of the coil's field, x y z, about 0 on average over the head; both on a grid along the world."""
    image = _image(head, grid)
    mask = _foreground(image)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([50, 50, 30])
    n4.Execute(sitk.Shrink(image, [2] * 3), sitk.Shrink(mask, [2] * 3))
    field = _voxels(n4.GetLogBiasFieldAsImage(image))
    return np.asarray(field - field[_voxels(mask) > 0].mean(), dtype=np.float32)


class Template:
    """The MNI152 brain, brought affinely onto a head.

    The template has no skull, so the two are compared inside its mask and a rim around it. A narrow rim finds the
    border of the brain best, a wide one finds the brain from further away. The head (x y z) lies along the axes of the
    world; `matrix` leads from its world to the template's, mm.

    ValueError if the two do not come to agree; RuntimeError if SimpleITK cannot even begin.
    """

    def __init__(self, head: np.ndarray, grid: np.ndarray) -> None:
        self.head = _image(head, grid)
        self.brain, self.inside = _template()
        skull = np.array(_middle_of_skull(self.head))
        tried = [self._from(skull + np.array([0, 0, lift_mm])) for lift_mm in STARTS_MM]
        agreement, onto_head = max(tried, key=lambda found: found[0])
        if agreement < MIN_AGREEMENT:
            raise ValueError(
                f"the template does not fit: mutual information {agreement:.2f}, expected {MIN_AGREEMENT} or more; "
                "is it a whole T1-weighted head, and is its affine right?"
            )
        self.affine = sitk.AffineTransform(onto_head.GetInverse())
        self.matrix = _matrix(self.affine)

    def mask(self) -> np.ndarray:
        """The template's mask on the head: x y z in [0, 1]."""
        inside = sitk.Cast(self.inside, sitk.sitkFloat32)
        return _voxels(sitk.Resample(inside, self.head, self.affine, sitk.sitkLinear, 0.0))

    def _from(self, start: np.ndarray) -> tuple[float, sitk.AffineTransform]:
        """Agreement and transform (from the template to the head), the template's middle being put there first."""
        points = _points(self.inside)
        centre = ((points.min(0) + points.max(0)) / 2).tolist()
        rigid = sitk.Euler3DTransform()
        rigid.SetCenter(centre)
        rigid.SetTranslation((start - centre).tolist())
        self._register(rigid, 3, [(4, 4.0)])
        onto_head = sitk.AffineTransform(3)
        onto_head.SetCenter(centre)
        onto_head.SetMatrix((START_SCALE * np.array(rigid.GetMatrix())).tolist())
        onto_head.SetTranslation(rigid.GetTranslation())
        self._register(onto_head, 2, [(4, 4.0), (2, 2.0)])
        return self._register(onto_head, 1, [(2, 2.0), (1, 0.0)]), onto_head

    def _register(self, transform: sitk.Transform, rim: int, levels: list[tuple[int, float]]) -> float:
        """Changes the transform so that template and head agree; returns their mutual information.

        A rim of so many voxels around the template's mask is compared too, each level so many times coarser and
        smoothed by so many mm.
        """
        method = sitk.ImageRegistrationMethod()
        method.SetMetricFixedMask(sitk.BinaryDilate(self.inside, [rim] * 3))
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(0.2, seed=1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetShrinkFactorsPerLevel([factor for factor, _ in levels])
        method.SetSmoothingSigmasPerLevel([sigma for _, sigma in levels])
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-4, 150)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(self.brain, self.head)
        return -float(method.GetMetricValue())


@cache
def _template() -> tuple[sitk.Image, sitk.Image]:
    """The brain and its mask."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template  # takes seconds to load

    brain, mask = load_mni152_template(resolution=GRID_MM), load_mni152_brain_mask(resolution=GRID_MM)
    return _image(brain.get_fdata(), brain.affine), _image(mask.get_fdata(), mask.affine) > 0.5


def _points(mask: sitk.Image) -> np.ndarray:
    """Where a mask is set: n 3, mm."""
    return np.asarray(np.argwhere(_voxels(mask) > 0) * GRID_MM + mask.GetOrigin())


def _middle_of_skull(head: sitk.Image) -> list[float]:
    """About: of the head's uppermost 130 mm, so without chin and neck."""
    points = _points(_foreground(head))
    if not len(points):
        raise ValueError("one grey value everywhere; is it a whole head?")
    upper = points[points[:, 2] > np.percentile(points[:, 2], 99.5) - 130]
    return np.percentile(upper, [2, 98], axis=0).mean(0).tolist()


def _matrix(affine: sitk.AffineTransform) -> np.ndarray:
    """4 4."""
    matrix, centre = np.eye(4), np.array(affine.GetCenter())
    matrix[:3, :3] = np.array(affine.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = np.array(affine.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return matrix
