"""`ChestXrayDataModule`: every layout and table of ChestX-ray14, its quirks, splits, boxes, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_chestxray import (
    BOXES,
    SIDE,
    V2017,
    V2020,
    module,
    name,
    pixels,
    png,
    row,
    write_images,
    write_table,
    write_tar,
)

from data_modules import Crop, tars
from data_modules.chestxray_tables import FINDINGS, LABELS, of_images
from data_modules.recipes.radiographs import Radiograph, shares
from data_modules.records import Record, person_hash, write_records
from data_modules.sources import Scan
from data_modules.splits import SPLITS
from data_modules.store import Store
from data_modules.tables import Numbers
from lit_medgen.errors import InputError

Mutant = Callable[[bytes, np.random.Generator], bytes]
IMAGES = [(patient, number) for patient in range(1, 9) for number in range(1 + patient % 3)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patients in two folders as on Kaggle, with boxes. Read only."""
    root = tmp_path_factory.mktemp("nih") / "data"
    write_images(root / "images_001" / "images", IMAGES[:7])
    write_images(root / "images_002" / "images", IMAGES[7:])
    write_table(root / "Data_Entry_2017_v2020.csv", [row(*image) for image in IMAGES])
    write_table(
        root / "BBox_List_2017.csv",
        [f"{name(2)},Infiltrate,256,512,128,64,,,", f"{name(2)},Effusion,0,0,8,8,,,"],
        BOXES,
    )
    return root


def taken(root: Path, store: Path, **options: object) -> dict[tuple[str, str], Record]:
    accepted, _ = module(root, store, **options).prepare()
    return {(record.person, record.session): record for record in accepted}


def key(patient: int, number: int = 0) -> tuple[str, str]:
    return person_hash(str(patient)), f"{number:03}"


def test_folders_archives_and_a_flat_folder_hold_the_same(root: Path, tmp_path: Path) -> None:
    expected = {record.sha256 for record in taken(root, tmp_path).values()}
    assert len(expected) == len(IMAGES)
    files = {f"images/{path.name}": path.read_bytes() for path in sorted(root.rglob("*.png"))}
    for layout in ("flat", "tar", "gz"):
        other = tmp_path / layout
        write_table(other / "Data_Entry_2017_v2020.csv", [row(*image) for image in IMAGES])
        if layout == "flat":
            write_images(other, IMAGES)
        else:
            suffix, mode = (".tar", "w") if layout == "tar" else (".tar.gz", "w:gz")
            half = dict(list(files.items())[:5])
            write_tar(other / f"images_001{suffix}", half, mode)
            write_tar(other / f"images_002{suffix}", {n: c for n, c in files.items() if n not in half}, mode)
        assert {record.sha256 for record in taken(other, tmp_path / "stores").values()} == expected
        assert not list(other.rglob("*.part"))


def test_an_archive_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar.gz", {"images/b": b"12345", "images/a": b"678"})
    first = tars.places(path, tmp_path / "cache")
    assert [tars.content(path, place.offset, place.size) for place in reversed(first)] == [b"678", b"12345"]
    monkeypatch.setattr(tars, "_listed", lambda path: pytest.fail("read again"))
    assert tars.places(path, tmp_path / "cache") == first
    monkeypatch.undo()
    left = tars.places(path, tmp_path / "cache", lambda place: place.name == "images/b", "other")
    assert [place.name for place in left] == ["images/a"]
    assert [b"images/b" in file.read_bytes() for file in (tmp_path / "cache").iterdir()] == [False]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_damaged_archive_is_one_line_or_what_it_was(mode: str, tmp_path: Path, mutant: Mutant) -> None:
    """Of a plain tar a content may change unnoticed: checksums of PNG are for that."""
    path = write_tar(
        tmp_path / ("a.tar" if mode == "w" else "a.tgz"), {f"images/{k}": b"x" * 700 for k in range(4)}, mode
    )
    content, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for k in range(150):
        path.write_bytes(mutant(content, random))
        try:
            found = tars.places(path, tmp_path / f"cache{k}")
        except ValueError as error:
            refused += 1
            line = str(error)
            assert "\n" not in line
            assert "images/" not in line
        else:
            assert len(found) == 4
    assert refused > 40


def test_links_and_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", {"../00000001_000.png": b"1"})
    with pytest.raises(ValueError, match="leads out of the archive"):
        tars.places(path, tmp_path)


@pytest.mark.parametrize(("header", "end"), [(V2020, "\n"), (V2017, "\n"), (V2017, ",\n"), (V2020, "\r\n")])
def test_commas_of_both_tables(header: str, end: str, tmp_path: Path) -> None:
    rows = [row(1), row(2, 1, age="411"), row(3, age="058Y"), row(4, age="018M"), row(5).replace("0.168", "16.8")]
    write_table(tmp_path / "t.csv", rows, header, end)
    known = of_images(tmp_path / "t.csv", Numbers())
    ages = [known.attributes[n]["age_years"] for n in (name(1), name(2, 1), name(3), name(4))]
    assert ages[0] == 31
    assert math.isnan(ages[1])
    assert ages[2:] == [58, 1.5]
    assert known.extent_mm[name(1)] == pytest.approx((2048 * 0.168, 2500 * 0.143))
    assert known.attributes[name(2, 1)] | {"age_years": 0} == dict.fromkeys(FINDINGS, 0.0) | {
        **{"effusion": 1.0, "infiltration": 1.0, "no_finding": 0.0},
        **{"sex": 0.0, "view": 1.0, "age_years": 0},
    }
    assert math.isnan(known.extent_mm[name(5)][0])
    assert known.lines == [
        "t.csv: 1 images have sizes that no radiograph has, so they are unknown",
        "t.csv: 1 ages lie outside 0 to 120 years, so they are unknown",
    ]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([row(1), row(2, findings="Efusion")], r"unknown 'Finding Labels' in line 3"),
        ([row(2, findings="No Finding|Mass")], "unknown 'Finding Labels' in line 2"),
        ([row(1), row(1, sex="F")], "repeat a Image Index, first line 3"),
        ([row(2).replace(",2,32", ",3,32")], "'Patient ID' is not the patient"),
        ([row(2).replace(".png", "")], "'Image Index' is no name in line 2"),
        ([row(1), row(2)[:-6]], "a row ends early in line 3"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused_by_line(rows: list[str], match: str, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", rows)
    with pytest.raises(InputError, match=match) as caught:
        of_images(tmp_path / "t.csv", Numbers())
    assert "00000002" not in str(caught.value)


def test_rgba_and_rgb_files_are_their_grey(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for patient, mode in enumerate(("L", "RGB", "RGBA", "LA"), 1):
        folder.mkdir(exist_ok=True)
        (folder / name(patient)).write_bytes(png(pixels(patient), mode))
    write_table(folder / "Data_Entry.csv", [row(patient) for patient in range(1, 5)])
    data = module(folder, tmp_path / "store", size=(SIDE, SIDE))
    data.prepare()
    store = Store(data.address)
    assert len(store.records) == 4
    for record in store.records:
        patient = next(p for p in range(1, 5) if person_hash(str(p)) == record.person)
        found = (store.read(record) + 1) * 127.5
        np.testing.assert_allclose(found, pixels(patient).T, atol=1e-4)


def test_colours_sixteen_bits_and_other_shapes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_images(folder, [(1, 0)])
    images = [np.stack([pixels(2)] * 2 + [pixels(3)], 2), pixels(3).astype(np.uint16) * 257, pixels(4)[:, :20]]
    for patient, image in enumerate(images, 2):
        Image.fromarray(image).save(folder / name(patient))
    (folder / name(5)).write_bytes(png(np.full((SIDE, SIDE), 9, np.uint8)))
    write_table(folder / "Data_Entry.csv", [row(patient) for patient in range(1, 6)])
    accepted, rejected = module(folder, tmp_path / "store").prepare()
    assert len(accepted) == 1
    reasons = " | ".join(row.reason for row in rejected)
    for word in ("a colour image", "expected grey levels of 8 bits", "20 x 32 pixels", "nearly constant"):
        assert word in reasons


@pytest.mark.parametrize("kept", [(16, 16), (11, 11), (32, 32), (50, 50)])
def test_the_mean_is_kept_at_any_size(kept: tuple[int, int]) -> None:
    image = pixels(1).T.astype(np.float32)
    assert Radiograph(kept)(image).mean() == pytest.approx(image.mean(), abs=0.3)
    weights = shares(SIDE, kept[0])
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(0), kept[0] / SIDE, rtol=1e-4)
    if kept[0] == SIDE:
        np.testing.assert_array_equal(Radiograph(kept)(image), image)
    if kept[0] == 16:
        blocks = image.reshape(16, 2, 16, 2).mean((1, 3))
        np.testing.assert_allclose(Radiograph(kept)(image), blocks, atol=0.5)


def test_what_the_store_knows(root: Path, tmp_path: Path) -> None:
    data = module(root, tmp_path, crop=Crop((8, 8), centre="box"), num_jobs=1)
    data.prepare()
    data.setup("fit")
    assert data.spec.size == (8, 8)
    assert data.spec.intensity_window == (0, 255)
    assert set(data.spec.codes) == {*FINDINGS, "no_finding", "sex", "view"}
    assert data.spec.attributes["pneumothorax"] == (0, 1)  # whether or not it occurs
    assert data.spec.spacing_mm == pytest.approx((2048 * 0.168 / 16, 2500 * 0.143 / 16))
    record = next(record for record in data.store.records if (record.person, record.session) == key(2))
    assert record.attributes["infiltration"] == record.attributes["effusion"] == 1
    first, second = data.boxes_of(record)
    assert first == ("infiltration", 4, 8, 2, 1)
    assert second.finding == "effusion"
    assert record.facts["box"].tolist() == [4.5, 8.0]
    assert not data.boxes_of(next(r for r in data.store.records if r.person != record.person))
    assert data.store.arrays["image"].dtype == "uint8"


def test_official_lists_split_by_patient(root: Path, tmp_path: Path) -> None:
    for tested in ([1, 2, 3], [7]):
        lists = {True: "test_list.txt", False: "train_val_list.txt"}
        for side, file in lists.items():
            (root / file).write_text("\n".join(name(*image) for image in IMAGES if (image[0] in tested) == side))
        data = module(root, tmp_path)
        data.prepare()
        data.setup("fit")
        sides = {split: set(data.people(split).values()) for split in SPLITS}
        assert sides["test"] == {person_hash(str(patient)) for patient in tested}
        assert sum(map(len, sides.values())) == 8
        folded = module(root, tmp_path, fold="0 of 2")
        folded.prepare()
        folded.setup("fit")
        assert set(folded.people("test").values()) != sides["test"]
    with pytest.raises(InputError, match="exclude each other"):
        module(root, tmp_path, fold="0 of 2", official_split=True)
    (root / "test_list.txt").write_text(name(1))
    (root / "train_val_list.txt").write_text(name(1, 1))
    with pytest.raises(
        InputError, match=r"train_val_list.*1 people \(line 1\) are in the list of test as well"
    ) as caught:
        module(root, tmp_path).prepare()
    assert "00000001" not in str(caught.value)
    (root / "test_list.txt").unlink()
    with pytest.raises(InputError, match=r"0 lists test_list\.txt"):
        module(root, tmp_path).prepare()
    module(root, tmp_path, official_split=False).prepare()
    (root / "train_val_list.txt").unlink()
    with pytest.raises(InputError, match=r"no train_val_list\.txt"):
        module(root, tmp_path, official_split=True).prepare()


def test_who_is_excluded_moves_nobody_and_keeps_the_side(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_images(folder, IMAGES)
    write_table(folder / "Data_Entry.csv", [row(*image) for image in IMAGES])
    (folder / "test_list.txt").write_text("\n".join(name(*image) for image in IMAGES if image[0] < 4))
    (folder / "train_val_list.txt").write_text("\n".join(name(*image) for image in IMAGES if image[0] >= 4))
    (tmp_path / "out.txt").write_text("00000002\n5\n")
    whole, part = module(folder, tmp_path / "a"), module(folder, tmp_path / "b", exclude=str(tmp_path / "out.txt"))
    for data in (whole, part):
        data.prepare()
        data.setup("fit")
    left = {person_hash("2"), person_hash("5")}
    for split in SPLITS:
        assert set(part.people(split).values()) == set(whole.people(split).values()) - left
    assert part.spec.leaving["test"] == (person_hash("2"),)
    (tmp_path / "out.txt").write_text("somebody\n")
    with pytest.raises(InputError, match=r"1 lines .* are no patients"):
        part.prepare()


def test_patients_with_many_images_stay_whole(tmp_path: Path) -> None:
    """1 to 184 images of a patient; nobody is named."""
    images = [(1, number) for number in range(184)] + [(patient, 0) for patient in range(2, 12)]
    write_images(tmp_path / "data", images)
    write_table(tmp_path / "data" / "Data_Entry.csv", [row(*image) for image in images])
    data = module(tmp_path / "data", tmp_path / "store", size=(4, 4))
    accepted, rejected = data.prepare()
    data.setup("fit")
    sides = {split: Counter(data.people(split).values()) for split in SPLITS}
    assert max(max(counts.values(), default=0) for counts in sides.values()) == 184
    assert sum(map(len, sides.values())) == 11
    assert len(data.first_visits("train")) == len(sides["train"])
    for line in data.taken(accepted, rejected, owner=False):
        assert "00000001" not in line
        assert "_000" not in line


def test_what_is_here_and_not_in_the_table_is_said(root: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "images", [(1, 0), (2, 0), (3, 0)])
    write_images(tmp_path / "data" / "again", [(1, 0)])
    write_table(tmp_path / "data" / "Data_Entry_2017.csv", [row(9)])
    write_table(tmp_path / "data" / "Data_Entry_2017_v2020.csv", [row(patient) for patient in (1, 2, 4, 5)])
    data = module(tmp_path / "data", tmp_path / "store")
    accepted, rejected = data.prepare()
    assert len(accepted) == 2
    assert sorted(row.reason for row in rejected) == [
        "another file of the same image",
        "no row of Data_Entry_2017_v2020.csv names it",
    ]
    assert "2 of 4 rows of the table are of images that are not here" in data.remarks
    (tmp_path / "data" / "Data_Entry_2017_v2020.csv").rename(tmp_path / "data" / "other.csv")
    with pytest.raises(InputError, match="2 tables at the top"):
        data.prepare()
    alone = module(root, tmp_path / "store", table=str(tmp_path / "data" / "other.csv"))
    assert len(alone.prepare()[0]) == 4


def check_images(num: int, folder: Path, content: bytes, mutant: Mutant) -> int:
    """Reads damaged PNG files; how many were refused. Pixels are those of the whole file, or there are none."""
    path, recipe = folder / name(1), Radiograph((8, 8))
    path.write_bytes(content)
    expected, refused, random = recipe.read(Scan(path, "1")), 0, np.random.default_rng(0)
    for _ in range(num):
        path.write_bytes(mutant(content, random))
        try:
            found = recipe.read(Scan(path, "1"))
        except ValueError as error:
            refused += 1
            line = " ".join(str(error).split())
            assert 10 < len(line) < 300
            assert "00000001" not in line
        else:
            np.testing.assert_array_equal(found, expected)
    return refused


def check_tables(num: int, folder: Path, rows: list[str], mutant: Mutant) -> int:
    """Reads damaged tables; how many were refused. No cell has a checksum, so another digit is another number."""
    path = folder / "t.csv"
    write_table(path, rows)
    content, refused, random = path.read_bytes(), 0, np.random.default_rng(0)
    labels = {"No Finding", *LABELS}
    for _ in range(num):
        damaged = mutant(content, random)
        path.write_bytes(damaged)
        try:
            known = of_images(path, Numbers())
        except InputError as error:
            refused += 1
            line = str(error)
            assert "\n" not in line
            assert len(line) < 1000
            assert not any(f"{patient:08}" in line for patient in range(1, 41))
            continue
        read = {cells[0].lower(): cells for cells in csv.reader(io.StringIO(damaged.decode("latin-1"))) if cells}
        assert set(known.attributes) <= set(read)
        for image, values in known.attributes.items():
            cells = read[image]
            named = {label for label in labels if values[label.lower().replace(" ", "_")] == 1}
            assert named == {label.strip() for label in cells[1].split("|")}
            assert int(cells[3]) == int(image[:8])
            assert math.isnan(values["age_years"]) or 0 <= values["age_years"] <= 120
            assert math.isnan(values["sex"]) or values["sex"] == float(cells[5] == "M")
            assert math.isnan(values["view"]) or values["view"] == float(cells[6] == "AP")
    return refused


def test_damaged_images_and_tables(tmp_path: Path, mutant: Mutant) -> None:
    assert check_images(100, tmp_path, png(pixels(1), "RGBA"), mutant) > 90
    assert check_tables(60, tmp_path, [row(patient, patient % 2) for patient in range(1, 41)], mutant) > 15


@pytest.mark.slow
@pytest.mark.data
def test_many_damaged_images_and_tables(shared_data: Path, tmp_path: Path, mutant: Mutant) -> None:
    """A real RGBA original, a real grey one, and the real table."""
    for file in ("images_1024/00000773_001.png", "images_256/00000061_015.png"):
        assert check_images(250, tmp_path, (shared_data / "cxr" / file).read_bytes(), mutant) > 240
    with (shared_data / "cxr" / "Data_Entry_subset.csv").open() as file:
        rows = file.read().splitlines()[1:41]
    assert check_tables(200, tmp_path, rows, mutant) > 40


@pytest.mark.slow
@pytest.mark.data
def test_real_images_load_with_their_counts(shared_data: Path, tmp_path: Path) -> None:
    cxr = shared_data / "cxr"
    common = {"table": str(cxr / "Data_Entry_subset.csv"), "boxes": str(cxr / "BBox_List_subset.csv"), "size": (64, 64)}
    data = module(cxr / "images_256", tmp_path, **common)
    accepted, rejected = data.prepare()
    assert (len(accepted), [row.reason for row in rejected]) == (
        748,
        ["the same image as another file of this data set"],
    )
    assert len({record.person for record in accepted}) == 513
    with (cxr / "Data_Entry_subset.csv").open() as file:
        labels = Counter(label for cells in list(csv.reader(file))[1:] for label in cells[1].split("|"))
    found = {label: sum(r.attributes[label.lower().replace(" ", "_")] for r in accepted) for label in labels}
    assert all(labels[label] - 1 <= num <= labels[label] for label, num in found.items())
    assert sum(len(data.boxes_of(record)) for record in accepted) == 32
    originals = module(cxr / "images_1024", tmp_path, **common)
    assert len(originals.prepare()[0]) == 4
    for folder, other in (("images_1024", "images_256"), ("images_512", "images_256")):
        for path in sorted((cxr / folder).glob("*.png"))[:4]:
            if (cxr / other / path.name).exists():  # the RGBA original among them, if it is
                large, small = (Radiograph((64, 64)).read(Scan(p, "1")) for p in (path, cxr / other / path.name))
                difference = np.abs(Radiograph((64, 64))(large).astype(float) - Radiograph((64, 64))(small))
                assert difference.mean() < 2
    with Image.open(cxr / "images_1024" / "00000773_001.png") as image:
        assert image.mode == "RGBA"
        grey = np.asarray(image.convert("L")).T
    np.testing.assert_array_equal(Radiograph().read(Scan(cxr / "images_1024" / "00000773_001.png", "1")), grey)


@pytest.mark.slow
@pytest.mark.data
def test_the_full_table_is_listed_and_split_in_a_minute(shared_data: Path, tmp_path: Path) -> None:
    """112,120 images stood in for by links to one file, and all of both tables."""
    root = tmp_path / "data"
    for file in ("Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"):
        content = gzip.decompress((shared_data / "cxr" / "metadata_full" / f"{file}.gz").read_bytes())
        root.mkdir(exist_ok=True)
        (root / file).write_bytes(content)
    names = [line.split(",")[0] for line in (root / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1:]]
    one = tmp_path / "one.png"
    one.write_bytes(png(pixels(1)))
    for k, image in enumerate(names):
        folder = root / f"images_{1 + k // 10_000:03}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / image).symlink_to(one)
    start = time.monotonic()
    data = module(root, tmp_path / "store", fractions=(0.8, 0.1, 0.1))
    scans, rejected = data.scans()
    listed = time.monotonic()
    records = [
        Record(f"{k:016x}", person_hash(s.person), s.session, "", math.nan, np.eye(4), s.attributes, facts=as_arrays(s))
        for k, s in enumerate(scans)
    ]
    data.address.folder.mkdir(parents=True)
    write_records(data.address.folder, records)
    data.setup("fit")
    done = time.monotonic()
    print(f"listed in {listed - start:.1f} s, split in {done - listed:.1f} s")
    assert done - start < 60
    assert (len(scans), rejected) == (112_120, [])
    people = {split: set(data.people(split).values()) for split in SPLITS}
    assert sum(map(len, people.values())) == len(set.union(*people.values())) == 30_805
    counts = Counter(label for scan in scans for label in (*FINDINGS, "no_finding", "sex") if scan.attributes[label])
    assert counts["hernia"] == 227
    assert counts["no_finding"] == 60_361
    assert counts["infiltration"] == 19_894
    assert counts["sex"] == 63_340
    assert max(Counter(scan.person for scan in scans).values()) == 184
    assert sum(len(data.boxes_of(record)) for record in data.store.records) == 984


def as_arrays(scan: Scan) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in scan.facts.items()}
