"""Raw heads: the brain is found, the field of the coil goes, and what cannot be a head is refused by name."""

from __future__ import annotations

import csv
import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed
from PIL import Image
from scipy import ndimage

from data_modules.folder import FolderDataModule
from data_modules.recipes import registration
from data_modules.recipes.raw_heads import RawHead
from data_modules.recipes.resampling import resample
from data_modules.recipes.volumes import Preprocessing
from lit_medgen.errors import InputError
from lit_medgen.images import read_image
from lit_medgen.images.nifti import write_nifti


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def turned(degrees: float, shift_mm: tuple[float, float, float]) -> np.ndarray:
    """4 4: about the z axis, then moved."""
    angle = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = shift_mm
    return matrix


def write_command(folder: Path, body: str) -> str:
    """A tool's command: a Python program that is called with input and output."""
    program = folder / "tool"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"{program} {{input}} {{output}}"


VERSION = "if sys.argv[1:] == ['--version']: print('tool 1.2'); sys.exit()"


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A drawn head, its oblique affine, the mask of its brain, and the matrix from its world to the template's.

    The template, nine tenths as large, in dark fluid and bone and a bright scalp, on a neck, under the field of a coil.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    to_template = turned(6, (3, -8, 12)) @ np.diag([1.1, 1.1, 1.1, 1])
    affine = turned(-5, (-95, -120, -110)) @ np.diag([2.2, 2.2, 2.2, 1])
    brain, mask = (
        resample(np.asarray(image.get_fdata(), np.float32), image.affine, (90, 104, 96), to_template @ affine)
        for image in (load_mni152_template(resolution=2), load_mni152_brain_mask(resolution=2))
    )
    inside = mask > 0.5
    skull = ndimage.binary_dilation(inside, iterations=4)
    scalp = ndimage.binary_dilation(inside, iterations=6) & ~skull
    place = np.indices(inside.shape)
    neck = ((place[0] - 45) ** 2 + (place[1] - 50) ** 2 < 18**2) & (place[2] < 25) & ~skull
    tissue = brain * inside + 0.1 * (skull & ~inside) + 0.8 * (scalp | neck)
    field = np.exp(0.5 * (place[1] / 104 - 0.5))
    noise = np.random.default_rng(0).normal(0, 0.02, inside.shape)
    return (1000 * (tissue * field + noise)).clip(0).astype(np.float32), affine, inside, to_template


@pytest.mark.slow
def test_the_brain_of_a_drawn_head_is_found(head: tuple[np.ndarray, ...]) -> None:
    voxels, affine, inside, to_template = head
    stripped, moved = RawHead(register=True)(voxels, affine)
    assert dice(stripped > 0, inside) > 0.95
    assert (stripped[inside] > 0).mean() > 0.9
    # The brain comes to lie where it does in the template.
    places = affine @ [*[np.argwhere(inside).T[axis] for axis in range(3)], np.ones(inside.sum())]
    apart = np.linalg.norm(((moved - to_template) @ places)[:3], axis=0)
    assert apart.mean() < 4


def test_the_field_of_a_coil_is_found() -> None:
    shape = (40, 44, 40)
    place = (np.indices(shape).T - np.array(shape) / 2).T
    inside = (place**2).sum(0) < 17**2
    tissue = inside * np.where((place**2).sum(0) < 11**2, 100.0, 60.0)
    log_field = 0.4 * place[0] / 20
    grid = np.diag([2.0, 2, 2, 1])
    found = registration.log_field((tissue * np.exp(log_field)).astype(np.float32), grid)
    assert np.corrcoef(found[inside], log_field[inside])[0, 1] > 0.95
    assert np.std((found - log_field)[inside]) < 0.25 * np.std(log_field[inside])


def test_denoising_takes_noise_and_leaves_edges() -> None:
    step = np.zeros((24, 24, 24), np.float32)
    step[12:] = 100
    noisy = step + np.random.default_rng(0).normal(0, 5, step.shape).astype(np.float32)
    smooth, _ = RawHead(denoise=5, unbias=False, strip="none")(noisy, np.eye(4))
    assert smooth[3:9].std() < 0.6 * np.maximum(noisy, 0)[3:9].std()
    assert smooth[13].mean() - smooth[10].mean() > 80


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (np.random.default_rng(0).random((40, 40, 40), np.float32), "is it a whole"),
        (np.ones((2, 2, 2), np.float32), "is it a whole"),
        (np.random.default_rng(0).random((2, 2, 2), np.float32), "is it a whole"),
        (np.ones((4, 4), np.float32), "expects a volume"),
    ],
)
def test_what_is_no_head_is_refused(voxels: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RawHead()(voxels, np.diag([*[2.0] * voxels.ndim, 1]))


@pytest.mark.parametrize("unit", [1.0, 1e-9])
@pytest.mark.parametrize("outlier", [32767.0, -32768.0])
def test_one_voxel_of_a_head_does_not_take_its_range(outlier: float, unit: float) -> None:
    voxels = np.random.default_rng(0).uniform(100, 400, (20, 20, 20))
    expected = voxels.copy()
    voxels[0, 0, 0], expected[0, 0, 0] = outlier, 0 if outlier < 0 else 4 * np.percentile(voxels, 99.5)
    found, _ = RawHead(unbias=False, strip="none")(voxels * unit, np.eye(4))
    np.testing.assert_allclose(found / unit, expected, rtol=1e-3)


def test_a_wrong_voxel_size_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(ValueError, match="it is 2550 mm long"):
        RawHead()(np.ones((256, 256, 256), np.float32), np.diag([10.0, 10.0, 10.0, 1]))


def test_an_external_tool_strips(head: tuple[np.ndarray, ...], tmp_path: Path) -> None:
    voxels, affine, _, _ = head
    body = f"""{VERSION}
import nibabel as nib, numpy as np
image = nib.load(sys.argv[1])
inside = ((np.indices(image.shape).T - np.array(image.shape) / 2) ** 2).sum(-1).T < 30**2
nib.save(nib.Nifti1Image(image.get_fdata() * inside, image.affine), sys.argv[2])"""
    steps = RawHead(unbias=False, strip=write_command(tmp_path, body))
    stripped, moved = steps(voxels, affine)
    inside = ((np.indices(voxels.shape).T - np.array(voxels.shape) / 2) ** 2).sum(-1).T < 30**2
    np.testing.assert_allclose(stripped, voxels * inside, rtol=1e-6)
    np.testing.assert_array_equal(moved, np.eye(4))
    assert steps.tools() == "tool tool 1.2"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.exit('no licence')", "ended with code 1 and no output; it said: no licence"),
        ("open(sys.argv[2], 'wb').write(b'not an image')", "wrote a volume that is none"),
        (
            "import nibabel as nib, numpy as np; nib.save(nib.Nifti1Image(np.ones((3, 3, 3)), np.eye(4)), sys.argv[2])",
            r"wrote a volume of \(3, 3, 3\); expected",
        ),
    ],
)
def test_a_tool_that_fails_is_named(body: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        RawHead(unbias=False, strip=write_command(tmp_path, body))(np.ones((8, 8, 8)), np.eye(4))


def test_a_brain_of_no_plausible_size_is_refused(tmp_path: Path) -> None:
    command = write_command(tmp_path, "import shutil; shutil.copy(sys.argv[1], sys.argv[2])")
    with pytest.raises(ValueError, match="left 1 mL; expected a brain of 500 to 2500 mL"):
        RawHead(unbias=False, strip=command)(np.ones((10, 10, 10)), np.eye(4))


@pytest.mark.parametrize(
    ("option", "value"), [("denoise", -1), ("strip", "hd-bet"), ("strip", ""), ("strip", "a '{input} {output}")]
)
def test_bad_options_are_named(option: str, value: str | int) -> None:
    with pytest.raises(InputError, match=f"raw_head.{option} is '?{value}"):
        RawHead(**{option: value})  # type: ignore[arg-type]


def test_a_missing_tool_is_named_before_any_work(cohort: Path, tmp_path: Path) -> None:
    steps = Preprocessing((8, 8, 8), raw_head=RawHead(strip="no-such-tool {input} {output}"))
    data = FolderDataModule(str(cohort), store_dir=str(tmp_path), preprocessing=steps)
    with pytest.raises(InputError, match="no program 'no-such-tool' on this machine"):
        data.prepare()
    assert not list(tmp_path.rglob("*.npy"))


def test_a_store_of_raw_heads(head: tuple[np.ndarray, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and tools are on file, what is no head is listed, nothing is done twice, and figures can come later."""
    voxels, affine, _, _ = head
    (tmp_path / "raw").mkdir()
    write_nifti(tmp_path / "raw" / "head.nii.gz", voxels, affine)
    write_nifti(tmp_path / "raw" / "noise.nii.gz", np.random.default_rng(0).random((40, 40, 40)), np.diag([2, 2, 2, 1]))
    steps = Preprocessing((48, 56, 48), (192, 224, 192), raw_head=RawHead(unbias=False, register=True))
    data = FolderDataModule(str(tmp_path / "raw"), store_dir=str(tmp_path), preprocessing=steps, num_jobs=1)
    [record], [refused] = data.prepare()
    assert "noise.nii.gz" in refused.source
    assert "is it a whole" in refused.reason
    folder = data.address.folder
    recipe = json.loads((folder / "preprocessing.json").read_text())
    assert recipe["raw_head"] == {"denoise": 0, "unbias": False, "strip": "registration", "register": True}
    with (folder / "manifest.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["tools"] == record.tools == f"SimpleITK {registration.sitk.__version__}, nilearn {_version('nilearn')}"
    np.testing.assert_allclose(np.diag(record.affine)[:3], 4)  # along the template's axes
    monkeypatch.setattr(registration, "Template", lambda *_: pytest.fail("registered again"))
    (tmp_path / "raw" / "noise.nii.gz").unlink()
    data.prepare(figures=True)
    with Image.open(folder / "figures" / f"{record.key}.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 10


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


@pytest.mark.data
@pytest.mark.slow
def test_the_strip_of_real_heads_agrees_with_the_given_masks(shared_data: Path) -> None:
    def of(path: Path) -> float:
        voxels, affine = read_image(path)
        given = path.parents[1] / "brain" / path.name.replace(".nii.gz", "_brain.nii.gz")
        brain, its_affine = read_image(given)
        expected = resample((brain > 0).astype(np.float32), its_affine, voxels.shape, affine) > 0.5
        return dice(RawHead()(voxels, affine)[0] > 0, expected)

    heads = sorted((shared_data / "brain" / "ixi" / "head").glob("*.nii.gz"))
    assert len(heads) == 16
    found = dict(zip([path.name for path in heads], Parallel(-1)(delayed(of)(path) for path in heads), strict=True))
    print(found)
    assert min(found.values()) > 0.93
    assert np.mean(list(found.values())) > 0.95
