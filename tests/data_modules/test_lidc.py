"""LIDC-IDRI from a TCIA tree to slices, maps and nodules; what is wrong with a scan is said in one line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
import yaml
from PIL import Image
from pydicom import Dataset
from tiny_lidc import GAP_MM, LEFT_LUNG, NODULE, RIGHT_LUNG, SIDE, SPACING_MM, TinyScan, chest, write_tiny
from tiny_run import ROOT

from data_modules import CTSlices, LIDCDataModule
from data_modules.lidc.semantic_maps import CLASSES, LUNG, PRESETS
from data_modules.sources import Rejected
from data_modules.splits import SPLITS
from lit_medgen.__main__ import main
from lit_medgen.errors import InputError, MissingDataError

SMALL = CTSlices(size=(SIDE, SIDE))


def module(root: Path, ct: CTSlices = SMALL, **options: Any) -> LIDCDataModule:
    defaults: dict[str, Any] = {"fractions": (0.5, 0.25, 0.25), "num_jobs": 1}
    return LIDCDataModule(str(root), ct, store_dir=str(root.parent / "store"), **defaults | options)


def opened(root: Path, ct: CTSlices = SMALL, **options: Any) -> LIDCDataModule:
    data = module(root, ct, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def one_scan(root: Path, **facts: Any) -> Path:
    """A tree of a single patient."""
    return TinyScan(**facts).write(root / "LIDC-IDRI-0001" / "study" / "series")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients. Read only."""
    return write_tiny(tmp_path_factory.mktemp("lidc") / "raw")


# What comes out.


def test_a_batch_holds_slices_with_maps_and_ratings(tree: Path) -> None:
    data = opened(tree, batch_size=8, fractions=(1.0, 0.0, 0.0))
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == batch.condition.label_map.shape == (8, 1, SIDE, SIDE)
    assert batch.image.dtype == torch.float32
    assert batch.condition.label_map.dtype == torch.int64
    assert -1 <= batch.image.min() < batch.image.max() <= 1
    nodule = (batch.condition.label_map == 7).flatten(1).any(1)
    assert nodule.any()
    torch.testing.assert_close(batch.condition.attributes["malignancy"][nodule], torch.full((int(nodule.sum()),), 4.0))
    assert batch.condition.attributes["malignancy"][~nodule].isnan().all()
    assert data.spec.classes == CLASSES
    assert data.spec.intensity_unit == "HU"
    assert data.spec.spacing_mm == (SPACING_MM, SPACING_MM)
    assert data.spec.attributes["malignancy"] == (4.0, 4.0)


def test_hounsfield_units_are_kept_as_they_are(tree: Path) -> None:
    """Every slice, in its place: the images are told apart by their noise."""
    data = opened(tree)
    found = set()
    for key, facts in data.scan_facts(data.store.records).items():
        stored = np.load(data.store.folder / "volumes" / f"{key}.npy")
        assert stored.dtype == np.int16
        for image, one in zip(stored, facts["images"], strict=True):
            found.add((image.tobytes(), one["slice"]))
    expected = {(TinyScan(n).pixels(k).clip(-1024).tobytes(), k) for n in range(1, 7) for k in range(10)}
    assert found <= expected
    assert len(found) == 12


def test_an_image_is_the_window_of_its_slice(tree: Path) -> None:
    data = opened(tree)
    record = data.records["train"][0]
    image = data.store.read(record)
    low, high = data.spec.intensity_window
    assert (low, high) == (-1024, 800)
    stored = np.load(data.store.path(record))[0].T
    np.testing.assert_allclose(data.spec.to_window(torch.from_numpy(image)), stored.clip(low, high), atol=1e-3)


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, -1, 0)]
)
def test_turned_slices_come_out_upright_with_their_nodule(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    """Upside-down, mirrored and prone scans: the same person in the same place, whatever the files' orientation."""
    one_scan(tmp_path / "raw", orientation=orientation)
    data = opened(tmp_path / "raw", fractions=(1.0, 0.0, 0.0))
    with_nodule = [r for r in data.records["train"] if np.isfinite(r.attributes["malignancy"])]
    assert len(with_nodule) == 2
    for record, place in zip(with_nodule, (4, 5), strict=True):
        image, labels = (
            data.spec.to_window(torch.from_numpy(data.store.read(record))).T,
            data.store.read(record, name="label_map").T,
        )
        np.testing.assert_allclose(image, TinyScan().pixels(place).clip(-1024, 800), atol=1e-2)
        assert (labels[NODULE] == 7).all()
        assert (labels == 7).sum() == 36
        row, column = NODULE[0].start, NODULE[1].start
        world = record.affine @ [column, row, 0, 1]
        expected = [-(column - (SIDE - 1) / 2) * SPACING_MM, -(row - (SIDE - 1) / 2) * SPACING_MM]
        np.testing.assert_allclose(world[:3], [*expected, -100 + GAP_MM * place], atol=1e-3)
    (nodule,) = next(iter(data.scan_facts(data.store.records).values()))["nodules"]
    assert nodule["centre"] == [46.5, 64.5, 4.5]


def test_lungs_are_found_in_every_slice(tree: Path) -> None:
    data = opened(tree)
    lungs = LEFT_LUNG | RIGHT_LUNG
    for record in data.store.records:
        found = data.store.read(record, name="label_map").T >= LUNG
        assert 2 * (found & lungs).sum() / (found.sum() + lungs.sum()) > 0.95


@pytest.mark.parametrize(("share", "least"), [(0.0, 2), (0.2, 2), (0.5, 5), (1.0, 10)])
def test_slices_kept(tmp_path: Path, share: float, least: int) -> None:
    one_scan(tmp_path / "raw")
    data = opened(tmp_path / "raw", CTSlices(size=(SIDE, SIDE), share=share), fractions=(1.0, 0.0, 0.0))
    (facts,) = data.scan_facts(data.store.records).values()
    places = [one["slice"] for one in facts["images"]]
    assert len(places) == least
    assert places == sorted(set(places))
    assert {4, 5} <= set(places)  # the nodule's


def test_a_scan_without_nodules_has_slices_all_the_same(tmp_path: Path) -> None:
    one_scan(tmp_path / "raw", nodule=None)
    data = opened(tmp_path / "raw", fractions=(1.0, 0.0, 0.0))
    assert len(data.store.records) == 2
    assert data.spec.attributes == {}


@pytest.mark.parametrize(("readers", "counts"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_nodule_needs_enough_readers(tmp_path: Path, readers: int, counts: bool) -> None:
    one_scan(tmp_path / "raw", malignancy=(4,) * readers)
    data = opened(tmp_path / "raw", fractions=(1.0, 0.0, 0.0))
    assert any((data.store.read(record, name="label_map") == 7).any() for record in data.store.records) == counts


@pytest.mark.parametrize(("ratings", "thesis", "code"), [((2, 2, 3, 3), 5, 6), ((3, 3, 3), 6, 6), ((1, 1, 5), 5, 5)])
def test_classes_of_all_presets(tmp_path: Path, ratings: tuple[int, ...], thesis: int, code: int) -> None:
    one_scan(tmp_path / "raw", malignancy=ratings)
    for preset, expected in (("thesis", thesis), ("code", code), ("alike", 6)):
        ct = CTSlices(size=(SIDE, SIDE), preset=preset)  # type: ignore[arg-type]
        data = opened(tmp_path / "raw", ct, fractions=(1.0, 0.0, 0.0))
        found = {
            int(value)
            for record in data.store.records
            for value in np.unique(data.store.read(record, name="label_map"))
        }
        assert {value for value in found if value > LUNG} == {expected}


def test_nobody_is_in_two_splits(tmp_path: Path) -> None:
    """Two scans of everybody."""
    for number in range(1, 9):
        for study in ("a", "b"):
            scan = TinyScan(number=number if study == "a" else 100 + number)
            scan.write(tmp_path / "raw" / f"LIDC-IDRI-{number:04d}" / study / "series")
    data = opened(tmp_path / "raw")
    people = [{record.person for record in records} for records in data.records.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 8
    assert all(data.records.values())


def test_the_table_of_nodules(tree: Path) -> None:
    data = opened(tree)
    with (data.store.folder / "nodules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {(row["row"], row["column"], row["first"], row["last"]) for row in rows} == {("46.5", "64.5", "4", "5")}
    assert {row["malignancy"] for row in rows} == {"4.0"}
    assert {row["num_readers"] for row in rows} == {"4"}


def test_no_name_of_anybody_is_in_the_store(tree: Path) -> None:
    data = opened(tree)
    for path in data.store.folder.rglob("*"):
        if path.suffix in (".csv", ".json") and path.name != "rejected.csv":
            assert "LIDC-IDRI" not in path.read_text()
            assert "1.3.6.1.4" not in path.read_text()


def test_one_slice_of_each_person_is_evaluated(tree: Path) -> None:
    data = opened(tree)
    images = data.images("train", one_per_person=True).all()
    assert len(images) == len(set(data.people("train").values()))


def test_figures(tree: Path) -> None:
    data = module(tree)
    data.prepare(figures=True)
    figures = sorted((data.address.folder / "figures").glob("*.png"))
    assert len(figures) == 7
    for path in figures:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels.std() > 20, path.name
        assert (np.ptp(pixels, axis=2) > 60).any(), path.name  # in colour


def mixed(root: Path) -> Path:
    """Eight patients, every second without a nodule, benign and malignant ones by turns."""
    for number in range(1, 9):
        ratings = (2, 2, 3, 3) if number % 4 == 1 else (3, 3, 3)
        scan = TinyScan(number, nodule=(4, 5) if number % 2 else None, malignancy=ratings)
        scan.write(root / "LIDC-IDRI" / f"LIDC-IDRI-{number:04d}" / "study" / "series")
    return root


def test_malignant_is_malignancy_from_a_threshold(tmp_path: Path) -> None:
    root = mixed(tmp_path / "raw")
    for threshold, expected in ((3, {2.5: 0.0, 3.0: 1.0}), (2.5, {2.5: 1.0, 3.0: 1.0}), (4, {2.5: 0.0, 3.0: 0.0})):
        data = opened(root, malignant_from=threshold, fractions=(1.0, 0.0, 0.0))
        attributes = [record.attributes for record in data.records["train"]]
        assert {a["malignancy"]: a["malignant"] for a in attributes if not np.isnan(a["malignancy"])} == expected
        assert all(np.isnan(a["malignant"]) == np.isnan(a["malignancy"]) for a in attributes)
        assert any(np.isnan(a["malignant"]) for a in attributes)
        assert ("malignant" in data.spec.codes) == (len(set(expected.values())) == 2)
    with pytest.raises(InputError, match=r"malignant_from is 1; give more than 1, at most 5"):
        module(root, malignant_from=1)


def test_nodules_only_shows_nodules_of_the_same_people(tmp_path: Path) -> None:
    """The split is the same, and its identity, so that a classifier of nodules can guide a model of all slices."""
    root = mixed(tmp_path / "raw")
    options: dict[str, Any] = {"fractions": (0.6, 0.2, 0.2), "seed": 3}
    every, nodules = opened(root, **options), opened(root, nodules_only=True, **options)
    assert every.spec.people == nodules.spec.people
    for split in SPLITS:
        with_nodule = [r.key for r in every.records[split] if np.isfinite(r.attributes["malignancy"])]
        assert [r.key for r in nodules.records[split]] == with_nodule
    assert sum(map(len, nodules.records.values())) == 8


def test_nodules_only_without_nodules_is_refused(tmp_path: Path) -> None:
    one_scan(tmp_path / "raw", nodule=None)
    with pytest.raises(InputError, match="nodules_only: none of the 2 slices has a nodule"):
        opened(tmp_path / "raw", nodules_only=True)


def test_balance_shows_malignant_and_benign_equally_often(tmp_path: Path) -> None:
    """One benign nodule for every three malignant ones, in slices without an end."""
    root = tmp_path / "raw"
    for number in range(1, 5):
        scan = TinyScan(number, malignancy=(1, 1, 1) if number == 1 else (5, 5, 5))
        scan.write(root / f"LIDC-IDRI-{number:04d}" / "study" / "series")
    data = opened(root, nodules_only=True, balance="malignant", batch_size=8, fractions=(1.0, 0.0, 0.0))
    assert data.order()["malignant_from"] == 3
    batches = iter(data.train_dataloader())
    shown = torch.cat([next(batches).condition.attributes["malignant"] for _ in range(3)])
    assert shown.mean() == 0.5


# Layouts.


def test_every_layout_of_tcia(tmp_path: Path) -> None:
    root = tmp_path / "manifest-1600709154662"
    uid = TinyScan(number=3).series_uid
    places = [
        "LIDC-IDRI/LIDC-IDRI-0001/01-01-2000-NA-NA-30178/3000566.000000-NA-03192",
        "LIDC-IDRI/LIDC-IDRI-0002/01-01-2000-30178/3000566.000000-03192",
        f"LIDC-IDRI/LIDC-IDRI-0003/1.3.6.1.4.1.14519.3.1/{uid}",
    ]
    for number, place in enumerate(places, start=1):
        TinyScan(number=number).write(root / place)
    (root / "metadata.csv").write_text("Series UID\n")
    (root / places[0] / "LICENSE").write_text("CC BY 3.0")
    accepted, rejected = module(root).prepare()
    assert len(accepted) == 3
    assert rejected == []


def test_the_xml_may_lie_elsewhere(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    shutil.copytree(tree, root)
    for number, path in enumerate(sorted(root.rglob("*.xml"))):
        place = root / "tcia-lidc-xml" / "157" / f"{number}.xml"
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    accepted, rejected = module(root).prepare()
    assert (len(accepted), rejected) == (6, [])


def test_chest_films_are_passed_over(tmp_path: Path) -> None:
    film = tmp_path / "raw" / "LIDC-IDRI-0001" / "film" / "series"
    one_scan(tmp_path / "raw")
    TinyScan(number=9, change=lambda data, place: setattr(data, "Modality", "DX")).write(film)
    (film / "069.xml").write_text("<IdriReadMessage/>")
    accepted, rejected = module(tmp_path / "raw").prepare()
    assert (len(accepted), rejected) == (1, [])


# What is wrong.


def only_rejection(root: Path, ct: CTSlices = SMALL) -> Rejected:
    """Why the one bad scan beside a good one was refused."""
    TinyScan(number=77).write(root / "LIDC-IDRI-0077" / "study" / "series")
    accepted, rejected = module(root, ct).prepare()
    assert len(accepted) == 1  # the good one is there all the same
    (one,) = rejected
    assert "\n" not in one.source + one.reason
    return one


def at(place: int, **changes: Any) -> Callable[[Dataset, int], None]:
    """Sets attributes of one slice."""

    def change(data: Dataset, number: int) -> None:
        if number == place:
            for name, value in changes.items():
                setattr(data, name, value)

    return change


def cut_off(data: Dataset, place: int) -> None:
    if place == 4:
        data.PixelData = data.PixelData[: SIDE * SIDE]


def second_phase(data: Dataset, place: int) -> None:
    if place == 3:
        data.ImagePositionPatient = [-190.0, -190.0, -95.0]  # where slice 2 is
        data.PixelData = (chest(99, 0, False) + 1024).tobytes()


def tilted(data: Dataset, place: int) -> None:
    x, y, z = map(float, data.ImagePositionPatient)
    data.ImagePositionPatient = [x, y + 0.8 * place, z]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing slices": ({"change": lambda data, place: place not in (4, 5)}, "gap of 7.50 mm after -92.50 mm"),
    "localizer": ({"change": at(3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])}, "different orientation"),
    "mixed spacing": ({"change": at(3, PixelSpacing=[4.0, 3.9])}, "pixel spacing"),
    "two phases": ({"change": second_phase}, "two different slices"),
    "gantry tilt": ({"change": tilted}, "gantry tilt"),
    "thick slices": ({"thickness_mm": 3.0}, "slices of 3 mm; expected at most 2.5 mm"),
    "no thickness": ({"thickness_mm": 0.0}, "slices of 0 mm"),
    "two thicknesses": ({"change": at(3, SliceThickness=1.25)}, "slices of 2.5 and 1.25 mm"),
    "oblong pixels": ({"change": lambda data, place: setattr(data, "PixelSpacing", [4.0, 3.0])}, "expected squares"),
    "no unit vectors": ({"change": at(3, ImageOrientationPatient=[2, 0, 0, 0, 2, 0])}, "two unit vectors"),
    "slope 0": ({"change": at(4, RescaleSlope="0")}, "rescale slope 0; expected a number above 0"),
    "slope 2": ({"change": at(4, RescaleSlope="2")}, "those of tissue"),
    "empty slice": ({"change": lambda data, place: setattr(data, "PixelData", bytes(2 * SIDE**2))}, "those of tissue"),
    "nothing but padding": ({"change": at(4, RescaleIntercept="-6000")}, "those of tissue"),
    "unknown thickness": ({"change": lambda data, place: delattr(data, "SliceThickness")}, "slices of nan mm"),
    "no rescale": ({"change": at(4, RescaleIntercept="0")}, "expected air or fat"),
    "cut off": ({"change": cut_off}, "cannot be read as a DICOM slice"),
    "coronal": ({"orientation": (1, 0, 0, 0, 0, -1)}, "not axial"),
    "outline between scans": ({"nodule": (14, 15)}, "069.xml: an outline at z = -65 mm"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_scan_is_refused_with_its_fault(fault: str, tmp_path: Path) -> None:
    facts, said = FAULTS[fault]
    folder = one_scan(tmp_path / "raw", **facts)
    one = only_rejection(tmp_path / "raw")
    assert one.source == str(folder)
    assert said in one.reason


def test_two_scans_of_one_folder_are_told_apart(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "raw", 1)
    other = TinyScan(number=2).write(tmp_path / "other")
    [series] = {path.parent for path in folder.rglob("*.dcm")}
    for path in other.iterdir():
        path.rename(series / f"2{path.name}")
    data = module(tmp_path / "raw")
    scans, rejected = data.scans()
    assert rejected == []
    assert [len(scan.source) for scan in scans] == [10, 10]
    assert len({scan.beside["annotations"] for scan in scans}) == 2


def other_digits(data: Dataset, place: int) -> None:
    data.PixelSpacing = [4.00000001, 4.0]
    data.SliceThickness = 2.5 + 1e-8 * (place % 3)


def test_lengths_written_with_other_digits_are_one(tmp_path: Path) -> None:
    one_scan(tmp_path / "raw", change=other_digits)
    assert len({record.file for record in opened(tmp_path / "raw", fractions=(1.0, 0.0, 0.0)).store.records}) == 1


XML_FAULTS: dict[str, tuple[Callable[[str], str], str]] = {
    "bomb": (lambda text: text.replace("?>", '?><!DOCTYPE a [<!ENTITY b "b">]>', 1), "document type or entities"),
    "cut off": (lambda text: text[:-40], "no whole XML"),
    "rating": (lambda text: text.replace("<malignancy>5", "<malignancy>9"), "malignancy is 9; expected 1 to 5"),
    "leaves the image": (lambda text: text.replace("<xCoord>61", "<xCoord>97"), "leaves the slice"),
}


@pytest.mark.parametrize("fault", XML_FAULTS)
def test_a_faulty_xml_is_named(fault: str, tmp_path: Path) -> None:
    change, said = XML_FAULTS[fault]
    path = one_scan(tmp_path / "raw") / "069.xml"
    path.write_text(change(path.read_text()))
    one = only_rejection(tmp_path / "raw")
    assert one.reason.startswith("069.xml: ")
    assert said in one.reason


def test_images_without_xml_and_xml_without_images(tmp_path: Path) -> None:
    folder = one_scan(tmp_path / "raw")
    (folder / "069.xml").unlink()
    (tmp_path / "raw" / "stray.xml").write_text(TinyScan(number=55).xml())
    (tmp_path / "raw" / "strange.xml").write_text("<a/>")
    TinyScan(number=77).write(tmp_path / "raw" / "LIDC-IDRI-0077" / "study" / "series")
    accepted, rejected = module(tmp_path / "raw").prepare()
    assert len(accepted) == 1
    reasons = {Path(one.source).name: one.reason for one in rejected}
    assert reasons.keys() == {"series", "stray.xml", "strange.xml"}
    assert "no XML of its series" in reasons["series"]
    assert "no CT series" in reasons["stray.xml"]
    assert "no SeriesInstanceUid" in reasons["strange.xml"]


def test_slices_of_another_size_are_refused(tmp_path: Path) -> None:
    one_scan(tmp_path / "raw")
    with pytest.raises(InputError, match=r"slices of \(96, 96\); expected \(512, 512\)"):
        module(tmp_path / "raw", CTSlices()).prepare()


def test_a_second_copy_of_a_scan_does_not_hide_the_first(tmp_path: Path) -> None:
    """A download that broke off, and the whole one beside it, each with its XML."""
    broken = TinyScan(change=lambda data, place: place not in (4, 5)).write(
        tmp_path / "raw" / "LIDC-IDRI-0001" / "a" / "s"
    )
    TinyScan().write(tmp_path / "raw" / "LIDC-IDRI-0001" / "b" / "s")
    accepted, rejected = module(tmp_path / "raw").prepare()
    assert len(accepted) == 1
    assert [one.source for one in rejected] == [str(broken)]
    assert "gap" in rejected[0].reason


def test_of_two_different_xml_files_the_correction_counts(tmp_path: Path) -> None:
    folder = one_scan(tmp_path / "raw")
    (folder / "069.xml").rename(folder / "z161.xml")
    corrected = TinyScan(malignancy=(1, 1, 1, 1)).xml()
    (folder / "z162.xml").write_text(corrected)
    one = only_rejection(tmp_path / "raw")
    assert "2 different XML files of its series (z161.xml, z162.xml)" in one.reason
    (folder / "z162.xml").rename(folder / "z161-resubmitted-correction-3-9-12.xml")
    data = opened(tmp_path / "raw", fractions=(1.0, 0.0, 0.0))
    assert {
        nodule["malignancy"] for facts in data.scan_facts(data.store.records).values() for nodule in facts["nodules"]
    } == {1.0, 4.0}


def test_one_reader_who_drew_four_times_is_one_reader(tmp_path: Path) -> None:
    folder = one_scan(tmp_path / "raw")
    path = folder / "069.xml"
    path.write_text(path.read_text().replace("</readingSession><readingSession>", ""))
    data = opened(tmp_path / "raw", fractions=(1.0, 0.0, 0.0))
    assert [facts["nodules"] for facts in data.scan_facts(data.store.records).values()] == [[]]


def test_outlines_without_ratings_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = one_scan(tmp_path / "raw") / "069.xml"
    path.write_text(re.sub(r"<characteristics>.*?</characteristics>", "<characteristics/>", path.read_text(), count=1))
    with caplog.at_level("INFO"):
        module(tmp_path / "raw").prepare()
    assert "1 outlines have no ratings and are left out" in caplog.text


def test_a_series_of_another_kind_or_of_nobody_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    TinyScan(number=1, change=lambda data, place: setattr(data, "Modality", "PT")).write(root / "LIDC-IDRI-0001" / "s")
    TinyScan(number=2, change=lambda data, place: setattr(data, "PatientID", "")).write(root / "somebody" / "s")
    TinyScan(number=3).write(root / "LIDC-IDRI-0003" / "s")
    (root / "dangling.xml").symlink_to(tmp_path / "nowhere")
    accepted, rejected = module(root).prepare()
    assert len(accepted) == 1
    reasons = {Path(one.source).relative_to(root).as_posix(): one.reason for one in rejected}
    assert "modality 'PT'; expected CT" in reasons["LIDC-IDRI-0001/s"]
    assert "whose scan it is" in reasons["somebody/s"]
    assert "cannot be read" in reasons["dangling.xml"]


def test_pydicom_prints_no_identifier(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    canary = "1.3.06.1.4.1.14519.99"  # not a valid UID, of which pydicom would warn
    folder = one_scan(tmp_path / "raw")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.3.6.1.4.1.14519.1.2", canary.encode()))
    module(tmp_path / "raw").prepare()
    assert not [str(one.message) for one in recwarn if canary in str(one.message)]


def test_a_second_preparation_writes_nothing(tree: Path, tmp_path: Path) -> None:
    data = LIDCDataModule(str(tree), SMALL, store_dir=str(tmp_path), num_jobs=1)
    data.prepare()
    before = {path: path.stat().st_mtime_ns for path in data.address.folder.rglob("*") if path.is_file()}
    data.prepare()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_numbers_of_a_preset_are_part_of_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = module(tmp_path).address.folder
    changed = replace(PRESETS["thesis"], window=(-1000, 800))
    monkeypatch.setitem(PRESETS, "thesis", changed)
    assert module(tmp_path, CTSlices(size=(SIDE, SIDE))).address.folder != before


def test_a_dangling_slice_is_an_error_and_a_folder_is_none(tmp_path: Path) -> None:
    folder = one_scan(tmp_path / "raw")
    (tmp_path / "raw" / "odd.dcm").mkdir()
    (folder / "1-001.dcm").rename(tmp_path / "away")
    (folder / "1-001.dcm").symlink_to(tmp_path / "nowhere")
    one = only_rejection(tmp_path / "raw")
    assert one.source == str(folder)
    assert "1-001.dcm" in one.reason


def test_duplicates_count_once_and_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = one_scan(tmp_path / "raw")
    shutil.copy(folder / "1-001.dcm", folder / "1-099.dcm")
    with caplog.at_level("INFO"):
        data = opened(tmp_path / "raw", fractions=(1.0, 0.0, 0.0))
    assert next(iter(data.scan_facts(data.store.records).values()))["num_slices"] == 10
    assert "1 scans have slices delivered twice" in caplog.text
    assert "2.5 mm: 1" in caplog.text


def test_rescale_is_that_of_each_slice_and_padding_is_air(tmp_path: Path) -> None:
    scan = TinyScan()

    def change(data: Dataset, place: int) -> None:
        pixels = scan.pixels(place).copy()
        if place % 2:
            pixels, data.RescaleIntercept = pixels + 2000, "-2000"
        else:
            data.RescaleIntercept = "0"
            data.PixelPaddingValue = -2000
            pixels[0, :5] = -2000
        data.PixelData = pixels.tobytes()

    one_scan(tmp_path / "raw", change=change)
    data = opened(tmp_path / "raw", CTSlices(size=(SIDE, SIDE), share=1.0), fractions=(1.0, 0.0, 0.0))
    stored = np.load(data.store.path(data.store.records[0]))
    for place, image in enumerate(stored):
        np.testing.assert_array_equal(image[1:], scan.pixels(place)[1:].clip(-1024))
    assert stored.min() >= -1024


@pytest.mark.parametrize(
    ("ct", "named"),
    [
        ({"share": 1.5}, "ct.share is 1.5"),
        ({"consensus": 0.0}, "ct.consensus is 0.0"),
        ({"min_readers": 5}, "ct.min_readers is 5"),
        ({"size": (512,)}, "ct.size is [512]"),
    ],
)
def test_bad_settings_are_named(ct: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as error:
        CTSlices(**ct)
    assert named in str(error.value)


def test_without_data_the_error_names_the_way(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="phantom lidc"):
        module(tmp_path / "nothing").prepare()


# The command line.


def test_prepare_by_the_command_line(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = yaml.safe_load((ROOT / "configs" / "data" / "lidc.yaml").read_text())
    section["init_args"] |= {"root": str(tree), "store_dir": str(tmp_path), "num_jobs": 1}
    section["init_args"]["ct"] |= {"size": [SIDE, SIDE], "preset": "code"}
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump(section))
    assert main(["prepare", "--data", str(path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"accepted 6 of 6 images, \d people; store: ", printed)  # and no share cut: slices keep their grid
    (recipe,) = [json.loads(file.read_text()) for file in tmp_path.glob("lidc-*/preprocessing.json")]
    assert recipe["preset"] == "code"
    section["init_args"]["axis"] = "coronal"
    path.write_text(yaml.safe_dump(section))
    assert main(["prepare", "--data", str(path)]) == 2


def test_a_second_run_reads_and_a_damaged_map_is_made_again(tree: Path, tmp_path: Path) -> None:
    data = LIDCDataModule(str(tree), SMALL, store_dir=str(tmp_path), num_jobs=1)
    data.prepare()
    maps = sorted(data.address.folder.glob("volumes/*.label_map.npy"))
    before = {path: path.read_bytes() for path in maps}
    times = {path: path.stat().st_mtime_ns for path in maps}
    maps[0].unlink()
    content = bytearray(before[maps[1]])
    content[-1] ^= 1
    maps[1].write_bytes(content)
    data.prepare()
    assert maps[0].read_bytes() == before[maps[0]]
    assert maps[1].read_bytes() != before[maps[1]]  # its size is right: only `verify` looks inside
    data.prepare(verify=True)
    assert {path: path.read_bytes() for path in maps} == before
    assert maps[2].stat().st_mtime_ns == times[maps[2]]


def test_a_method_trains_on_slices_and_samples_come_in_hu(tree: Path, tmp_path: Path) -> None:
    """The shipped VQGAN, whose images are ADNI's, on CT: only the data section changes."""
    section = {
        "data": {
            "class_path": "data_modules.LIDCDataModule",
            "init_args": {
                "root": str(tree),
                "store_dir": str(tmp_path / "store"),
                "ct": {"size": [SIDE, SIDE]},
                "batch_size": 2,
                "num_workers": 2,
                "num_jobs": 1,
                "fractions": [0.5, 0.25, 0.25],
            },
        }
    }
    (tmp_path / "ct.yaml").write_text(yaml.safe_dump(section))
    configs = ["configs/vqgan.yaml", "tests/tiny/any.yaml", "tests/tiny/vqgan.yaml", str(tmp_path / "ct.yaml")]
    words = [word for name in configs for word in ("--config", name)]
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    last = str(tmp_path / "vqgan" / "checkpoints" / "last.ckpt")
    assert main(["sample", "--ckpt_path", last, "--num", "1", "--format", "dicom", "--out", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").rglob("*.dcm")
    data = pydicom.dcmread(path)
    assert (data.Rows, data.Columns) == (SIDE, SIDE)
    assert data.get("SyntheticData") != "YES"  # it shows a patient
    hu = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    assert -1024 <= hu.min() < hu.max() <= 800
