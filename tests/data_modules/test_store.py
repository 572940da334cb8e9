"""The prepared store: what is read is what was prepared, work is done once, and no fault of a file goes unnamed."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_modules.parallel
import data_modules.preparing
import data_modules.sources
import data_modules.volume_files
from data_modules.preparing import _key, prepare
from data_modules.recipes.volumes import Preprocessing
from data_modules.records import Record, images_of, read_records, write_records
from data_modules.sources import Rejected, Scan
from data_modules.store import Store, StoreAddress
from lit_medgen.axes import AXES
from lit_medgen.errors import InputError, NoSpaceError, RunError
from lit_medgen.images import read_image
from lit_medgen.images.png import write_png

WriteHead = Callable[[Path, int], Path]


@pytest.fixture
def scans(cohort: Path) -> list[Scan]:
    """Six scans of three people."""
    files = sorted(cohort.rglob("*.nii.gz"))[:6]
    return [Scan(path, path.parent.name, f"visit {i % 2}", {"age": 50.0 + i}) for i, path in enumerate(files)]


@pytest.fixture
def address(tmp_path: Path, small: Preprocessing) -> StoreAddress:
    return StoreAddress(tmp_path / "prepared", "heads", small, "axial")


def make(address: StoreAddress, scans: Sequence[Scan], **options: Any) -> tuple[list[Record], list[Rejected]]:
    return prepare(address, scans, num_jobs=1, **options)


def volumes(address: StoreAddress) -> dict[str, tuple[int, bytes]]:
    """What lies in the store's folder of volumes: time of writing and content."""
    files = sorted((address.folder / "volumes").iterdir())
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def forbid_reading(*_: Any) -> None:
    pytest.fail("a raw image was read again")


@pytest.mark.parametrize("axis", AXES)
def test_what_is_read_is_what_was_prepared(axis: str, address: StoreAddress, scans: list[Scan]) -> None:
    address = replace(address, axis=axis)
    records, rejected = make(address, scans)
    store = Store(address)
    assert rejected == []
    assert [vars(r) | {"affine": r.affine.tolist()} for r in store.records] == [
        vars(r) | {"affine": r.affine.tolist()} for r in records
    ]
    expected = {}
    for scan in scans:
        assert isinstance(scan.source, Path)
        expected[scan.attributes["age"]] = (address.preprocessing(*read_image(scan.source)), scan)
    for record in store.records:
        prepared, scan = expected[record.attributes["age"]]
        np.testing.assert_allclose(store.read(record), prepared.voxels * 2 - 1, atol=2.5e-4)  # float16 in [-1, 1]
        np.testing.assert_allclose(record.affine, prepared.affine)
        assert record.cut == prepared.cut
        assert record.session == scan.session


@pytest.mark.parametrize("axis", AXES)
def test_slices_are_those_of_the_whole_volume(axis: str, address: StoreAddress, scans: list[Scan]) -> None:
    address = replace(address, axis=axis)
    make(address, scans[:1])
    store = Store(address)
    whole, index = store.read(store.records[0]), np.array([0, 3, 8])
    assert whole.shape == (10, 12, 9)
    found = store.read(store.records[0], index)
    np.testing.assert_array_equal(found, np.moveaxis(whole, AXES[axis], 0)[index])
    assert found.dtype == whole.dtype == np.float32
    assert np.load(store.path(store.records[0])).shape[0] == whole.shape[AXES[axis]]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-1], "it ends early"),
        (lambda content: content[:200], "it ends early"),
        (lambda content: b"", "its header is not that of float16"),
        (lambda content: content.replace(b"f2", b"f4", 1), "its header is not that of float16"),
    ],
)
def test_a_damaged_volume_is_named(
    damage: Callable[[bytes], bytes], reason: str, address: StoreAddress, scans: list[Scan]
) -> None:
    make(address, scans[:1])
    store = Store(address)
    path = store.path(store.records[0])
    path.write_bytes(damage(path.read_bytes()))
    for slices in (None, np.array([0, 8])):
        with pytest.raises(InputError, match=f"{path.name}: cannot be read \\({reason}.*run `prepare --verify`"):
            store.read(store.records[0], slices)


def test_manifest_tells_the_content(address: StoreAddress, scans: list[Scan]) -> None:
    make(address, scans)
    manifest = rows(address.folder / "manifest.csv")
    assert len(manifest) == 6
    for row in manifest:
        content = (address.folder / "volumes" / f"{row['key']}.npy").read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest()


def test_people_are_hashed_alike_over_visits_and_never_written_in_clear(
    address: StoreAddress, scans: list[Scan]
) -> None:
    make(address, scans)
    assert len({row["person"] for row in rows(address.folder / "manifest.csv")}) == 3
    for path in address.folder.rglob("*"):
        assert path.is_dir() or b"sub-" not in path.read_bytes()


def test_unknown_attributes_stay_unknown(address: StoreAddress, scans: list[Scan]) -> None:
    make(address, [replace(scans[0], attributes={"age": float("nan"), "sex": 1.0})])
    attributes = Store(address).records[0].attributes
    assert np.isnan(attributes["age"])
    assert attributes["sex"] == 1


def test_a_second_run_does_no_work(address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch) -> None:
    make(address, scans)
    before, digest = volumes(address), Store(address).digest
    monkeypatch.setattr(data_modules.sources, "read_image", forbid_reading)
    make(address, scans)
    assert volumes(address) == before
    assert Store(address).digest == digest


def test_raw_files_are_read_once(address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch) -> None:
    make(address, scans)
    with monkeypatch.context() as forbidding:
        forbidding.setattr(data_modules.preparing, "_key", forbid_reading)
        assert len(make(address, scans)[0]) == len(scans)
    with monkeypatch.context() as counting:
        read = []
        counting.setattr(data_modules.preparing, "_key", lambda address, scan: read.append(scan) or _key(address, scan))
        make(address, scans, verify=True)
        assert read == scans


def test_a_raw_file_written_again_is_read_again(address: StoreAddress, scans: list[Scan], tmp_path: Path) -> None:
    paths = [tmp_path / "0.nii.gz", tmp_path / "1.nii.gz"]
    mine = [replace(scan, source=path) for scan, path in zip(scans[:2], paths, strict=True)]
    for scan, path in zip(scans, paths, strict=False):
        shutil.copyfile(scan.files[0], path)
    assert len(make(address, mine)[0]) == 2
    shutil.copyfile(scans[1].files[0], paths[0])
    again, rejected = make(address, mine)
    assert len(again) == 1
    assert rejected[0].reason == "the same image as another file of this data set"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"STAMP": "../../etc/passwd"}'])
def test_a_damaged_list_of_keys_is_made_again(address: StoreAddress, scans: list[Scan], content: str) -> None:
    keys = [record.key for record in make(address, scans)[0]]
    path = address.folder / "keys.json"
    before = path.read_text()
    path.write_text(content.replace("STAMP", next(iter(json.loads(before)))))
    assert [record.key for record in make(address, scans)[0]] == keys
    assert path.read_text() == before


def test_moved_and_renamed_files_are_found_again(
    address: StoreAddress, scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(address, scans[:1])
    assert isinstance(scans[0].source, Path)
    moved = Path(shutil.copy(scans[0].source, tmp_path / "renamed.nii.gz"))
    monkeypatch.setattr(data_modules.sources, "read_image", forbid_reading)
    assert len(make(address, [replace(scans[0], source=moved)])[0]) == 1


def test_an_interrupted_run_is_completed(
    address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = iter([read_image] * 3)

    def interrupted(path: Path | list[Path]) -> tuple[np.ndarray, np.ndarray]:
        if (function := next(read, None)) is None:
            raise KeyboardInterrupt
        return function(path)

    monkeypatch.setattr(data_modules.sources, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(address, scans)
    assert not (address.folder / "manifest.csv").exists()  # no half a data set to train on
    done = volumes(address)
    assert len(done) == 6  # three volumes and their facts

    monkeypatch.setattr(data_modules.sources, "read_image", read_image)
    make(address, scans)
    assert len(Store(address).records) == 6
    assert volumes(address).items() >= done.items()


@pytest.mark.parametrize("place", ["volumes/.0123456789abcdef.npy", ".manifest.csv"])
def test_what_a_killed_run_leaves_is_cleaned_and_completed(
    place: str, address: StoreAddress, scans: list[Scan]
) -> None:
    make(address, scans)
    before = volumes(address)
    names = sorted(before)
    (address.folder / "volumes" / names[0]).unlink()  # facts without volume, or the reverse
    (address.folder / "volumes" / names[3]).unlink()
    no_such_process = 2**22 + 1  # above the greatest process number of Linux
    (address.folder / f"{place}.{no_such_process}@{os.uname().nodename}.part").write_bytes(b"half")
    theirs = address.folder / f"{place}.1@elsewhere.part"
    theirs.write_bytes(b"half")  # of another machine that prepares the same store
    make(address, scans)
    assert list(address.folder.rglob("*.part")) == [theirs]
    theirs.unlink()
    assert {name: content for name, (_, content) in volumes(address).items()} == {
        name: content for name, (_, content) in before.items()
    }


@pytest.mark.parametrize(
    "changes",
    [{"percentile": 99.0}, {"size": (10, 12, 8)}, {"field_of_view_mm": (40.0, 48.0, 37.0)}, {"centre": "grid"}],
)
def test_changed_preprocessing_makes_another_store(
    changes: dict[str, Any], address: StoreAddress, scans: list[Scan]
) -> None:
    other = replace(address, preprocessing=replace(address.preprocessing, **changes))
    assert other.folder != address.folder
    make(address, scans[:1])
    with pytest.raises(InputError, match="no prepared store"):
        Store(other)


def test_another_axis_makes_another_store(address: StoreAddress) -> None:
    assert len({replace(address, axis=axis).folder for axis in AXES}) == 3


def test_the_same_image_twice_is_taken_once(address: StoreAddress, scans: list[Scan], tmp_path: Path) -> None:
    assert isinstance(scans[0].source, Path)
    again = Path(shutil.copy(scans[0].source, tmp_path / "again.nii.gz"))
    records, rejected = make(address, [*scans, Scan(again, "somebody else")])
    assert len(records) == 6
    assert rejected == [Rejected(str(again), "the same image as another file of this data set")]


@pytest.fixture
def prepared(address: StoreAddress, scans: list[Scan]) -> tuple[StoreAddress, list[Scan], dict[str, tuple[int, bytes]]]:
    """A store, what made it, and what lies in it."""
    make(address, scans)
    return address, scans, volumes(address)


def flip_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, 2)
        byte = file.read(1)[0]
        file.seek(-100, 2)
        file.write(bytes([byte ^ 1]))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(("suffix", "damage"), [(".npy", flip_bit), (".npy", cut_off), (".json", cut_off)])
def test_a_damaged_store_is_found_and_mended(
    suffix: str,
    damage: Callable[[Path], None],
    prepared: tuple[StoreAddress, list[Scan], dict[str, tuple[int, bytes]]],
) -> None:
    address, scans, before = prepared
    damage(next((address.folder / "volumes").glob(f"*{suffix}")))
    records, rejected = make(address, scans, verify=True)
    assert (len(records), rejected) == (6, [])
    assert {name: content for name, (_, content) in volumes(address).items()} == {
        name: content for name, (_, content) in before.items()
    }


def test_a_mended_volume_is_read_anew_in_the_same_process(address: StoreAddress, scans: list[Scan]) -> None:
    make(address, scans[:1])
    store = Store(address)
    good = store.read(store.records[0]).copy()
    flip_bit(address.folder / "volumes" / f"{store.records[0].key}.npy")
    make(address, scans[:1], verify=True)
    np.testing.assert_array_equal(Store(address).read(store.records[0]), good)


def test_many_volumes_need_few_open_files(address: StoreAddress, tmp_path: Path, write_head: WriteHead) -> None:
    make(address, [Scan(write_head(tmp_path / f"{seed}.nii", seed), str(seed)) for seed in range(60)])
    store, limits = Store(address), resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 30, limits[1]))
    try:
        assert {store.read(record).shape for record in store.records} == {(10, 12, 9)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def faulty_files(folder: Path, write_head: WriteHead) -> dict[str, Path]:
    """One file for each fault; the key is what the reason must name."""
    folder.mkdir()
    shape, eye = (8, 8, 8), np.eye(4)

    def save(name: str, voxels: np.ndarray) -> Path:
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), eye), folder / name)
        return folder / name

    cut = write_head(folder / "cut.nii.gz", 99)
    cut.write_bytes(cut.read_bytes()[:2000])
    codes = save("codes.nii", np.arange(512).reshape(shape))
    codes.write_bytes(codes.read_bytes()[:252] + bytes(4) + codes.read_bytes()[256:])
    nan = np.ones(shape)
    nan[0, 0, :5] = np.nan
    return {
        "cut off or damaged": cut,
        "5 of 512 voxels are NaN": save("nan.nii.gz", nan),
        "constant": save("constant.nii.gz", np.full(shape, 3)),
        "4D": save("four.nii.gz", np.random.default_rng(0).uniform(size=(*shape, 2))),
        "sform_code are both 0": codes,
        "No such file": folder / "absent.nii.gz",
    }


@pytest.mark.filterwarnings("ignore")
def test_bad_files_are_listed_and_good_ones_prepared_all_the_same(
    address: StoreAddress, scans: list[Scan], tmp_path: Path, write_head: WriteHead
) -> None:
    faults = faulty_files(tmp_path / "bad", write_head)
    bad = [Scan(path, path.name) for path in faults.values()]
    records, _ = make(address, [*scans[:3], *bad, *scans[3:]], rejected=[Rejected("sub-9", "no image")])
    assert len(records) == len(Store(address).records) == 6
    found = {row["source"]: row["reason"] for row in rows(address.folder / "rejected.csv")}
    assert found.pop("sub-9") == "no image"
    assert set(found) == {str(path) for path in faults.values()}
    for text, path in faults.items():
        assert text in found[str(path)]
        assert "\n" not in found[str(path)]


def test_what_lies_outside_the_field_of_view_is_refused(address: StoreAddress, scans: list[Scan]) -> None:
    shell = replace(address, preprocessing=Preprocessing((4, 4, 4), (4.0,) * 3, centre="grid"))
    assert isinstance(scans[0].source, Path)
    voxels = np.ones((20, 20, 20))
    voxels[4:-4, 4:-4, 4:-4] = 0
    path = scans[0].source.parent / "shell.nii"
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    records, rejected = make(shell, [Scan(path, "a")])
    path.unlink()
    assert records == []
    assert "field of view" in rejected[0].reason


def test_images_of_two_dimensions(address: StoreAddress, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).uniform(size=(12, 8))
    write_png(tmp_path / "a.png", pixels)
    flat = Preprocessing((12, 8), (12.0, 8.0), centre="grid", intensity="window", window=(0.0, 255.0))
    _, rejected = make(replace(address, preprocessing=flat), [Scan(tmp_path / "a.png", "a")])
    assert rejected == []
    store = Store(replace(address, preprocessing=flat))
    np.testing.assert_allclose(store.read(store.records[0]), pixels * 2 - 1, atol=6e-3)  # 8 bit
    assert store.records[0].affine.shape == (4, 4)


def test_a_full_disk_is_not_the_fault_of_an_image(
    address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(NoSpaceError, match=r"volumes/\w+\.npy: no space \(ENOSPC, [\d,]+ bytes needed\)"):
        make(address, scans)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (struct.error("unpack requires 4 bytes"), "error: unpack requires 4 bytes"),
        (np.exceptions.DTypePromotionError("no common dtype"), "DTypePromotionError: no common dtype"),
        (RuntimeError(), "RuntimeError: RuntimeError"),
        (UnicodeEncodeError("utf-8", "\udce4", 0, 1, "surrogates"), "UnicodeEncodeError: 'utf-8' codec can't encode"),
        (PermissionError(13, "Permission denied"), "[Errno 13] Permission denied"),
        (np._core._exceptions._ArrayMemoryError((10**6, 10**6), np.dtype(np.float32)), "Unable to allocate"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_one_image_raises_is_its_rejection(
    error: Exception, reason: str, address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path | list[Path]) -> tuple[np.ndarray, np.ndarray]:
        if path == scans[2].source:
            raise error
        return read_image(path)

    monkeypatch.setattr(data_modules.sources, "read_image", read)
    records, rejected = make(address, scans)
    assert len(records) == 5
    assert [row.source for row in rejected] == [str(scans[2].source)]
    assert reason in rejected[0].reason
    assert "\n" not in rejected[0].reason


def test_a_figure_that_cannot_be_drawn_ends_no_preparation(
    address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preprocessing, "plot", lambda *_: 1 // 0)
    assert [row.reason for row in make(address, scans[:1], figures=True)[1]] == [
        "ZeroDivisionError: integer division or modulo by zero"
    ]


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((100, 100), np.dtype(np.float32)),
    ],
    ids=["disk", "memory", "array"],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_faults_of_the_machine_end_the_preparation_in_a_line(
    fault: Exception, wrapped: bool, address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path | list[Path], **_: Any) -> tuple[np.ndarray, np.ndarray]:
        if wrapped:
            raise ValueError("the file is damaged") from fault
        raise fault

    monkeypatch.setattr(data_modules.sources, "read_image", read)
    with pytest.raises(RunError, match=r"disk or the system fails|no memory left") as raised:
        make(address, scans)
    assert not isinstance(raised.value, InputError)
    assert not (address.folder / "rejected.csv").exists()


def test_a_store_that_cannot_be_written_is_not_the_fault_of_an_image(
    address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, num_bytes: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(data_modules.volume_files, "replacing", denied)
    with pytest.raises(RunError, match=r"volumes/\w+\.npy: cannot be written .*Permission denied"):
        make(address, scans)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOENT, errno.EACCES])
def test_a_folder_that_cannot_be_made_is_named_with_its_key(
    number: int, address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(InputError, match=r"data\.init_args\.store_dir: cannot make .*; give a folder"):
        make(address, scans)


def test_a_killed_process_is_one_line(
    address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Callable[[Any], Any]:
        raise BrokenProcessPool("a worker process was terminated")
        yield

    monkeypatch.setattr(data_modules.parallel, "Parallel", lambda **_: broken)
    with pytest.raises(RunError, match=r"a process was killed .*data\.init_args\.num_jobs"):
        make(address, scans)


def test_stores_of_two_roots_share_files_and_nothing_else(address: StoreAddress, scans: list[Scan]) -> None:
    one, two = (replace(address, listing=root) for root in ("/data/one", "/data/two"))
    make(one, scans[:4])
    before = {path: path.read_bytes() for path in one.folder.iterdir() if path.is_file()}
    make(two, scans[2:])
    assert before == {path: path.read_bytes() for path in one.folder.iterdir() if path.is_file()}
    assert [len(Store(each).records) for each in (one, two)] == [4, 4]
    assert Store(one).digest != Store(two).digest
    ours, theirs = (
        {path.name: path.stat().st_ino for path in (each.folder / "volumes").iterdir()} for each in (one, two)
    )
    assert len(ours.items() & theirs.items()) == 4  # two volumes and their facts


def test_a_damaged_volume_of_another_store_is_not_taken(address: StoreAddress, scans: list[Scan]) -> None:
    one, two = (replace(address, listing=root) for root in ("/data/one", "/data/two"))
    (record,), _ = make(one, scans[:1])
    cut_off(one.folder / "volumes" / f"{record.key}.npy")
    make(two, scans[:1])
    assert Store(two).read(record).shape == (10, 12, 9)
    with pytest.raises(InputError, match="cannot be read"):
        Store(one).read(record)


def test_volumes_are_copied_where_links_are_not_known(
    address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    make(address, scans[:1])
    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(data_modules.sources, "read_image", forbid_reading)
    other = replace(address, listing="/data/moved")
    make(other, scans[:1])
    assert {n: c for n, (_, c) in volumes(other).items()} == {n: c for n, (_, c) in volumes(address).items()}


# Ray's backend is a multiprocessing backend; loky, the default, spawns, which takes seconds of imports.
@pytest.mark.parametrize("backend", ["threading", "multiprocessing", pytest.param("loky", marks=pytest.mark.slow)])
def test_parallel_preparation_makes_the_same_manifest(
    backend: str, address: StoreAddress, scans: list[Scan], tmp_path: Path
) -> None:
    make(address, scans)
    other = replace(address, parent=tmp_path / "parallel")
    with joblib.parallel_config(backend=backend):
        prepare(other, scans, num_jobs=2)
    for name in ("manifest.csv", "rejected.csv", "preprocessing.json"):
        assert (other.folder / name).read_bytes() == (address.folder / name).read_bytes()
    assert {n: c for n, (_, c) in volumes(other).items()} == {n: c for n, (_, c) in volumes(address).items()}


def test_opening_reads_two_files_however_many_images_there_are(address: StoreAddress, scans: list[Scan]) -> None:
    make(address, scans)
    before = Store(address).records
    for path in (address.folder / "volumes").iterdir():
        path.unlink()
    assert [record.key for record in Store(address).records] == [record.key for record in before]


def flip_in_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, flip_in_the_middle, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_facts_are_named_and_made_again(
    damage: Callable[[Path], None], address: StoreAddress, scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(address, scans)
    path = address.folder / "facts.npz"
    whole = path.read_bytes()
    damage(path)
    with pytest.raises(InputError, match=r"facts\.npz: cannot be read \(.*run `prepare` again"):
        Store(address)
    monkeypatch.setattr(data_modules.sources, "read_image", forbid_reading)
    make(address, scans)
    assert path.read_bytes() == whole


def test_facts_of_another_manifest_are_refused(address: StoreAddress, scans: list[Scan]) -> None:
    """As after a preparation that was killed between the two files."""
    make(address, scans[:3])
    before = (address.folder / "manifest.csv").read_bytes()
    make(address, scans)
    (address.folder / "manifest.csv").write_bytes(before)
    with pytest.raises(InputError, match="it is not of the manifest beside it"):
        Store(address)


@given(
    numbers=st.lists(st.floats(allow_nan=True, width=64), min_size=4, max_size=4),
    session=st.text(max_size=8),
    images=st.integers(0, 3),
)
def test_records_come_back_as_they_were_written(
    numbers: list[float], session: str, images: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("records")
    affine = np.diag([*numbers[:3], 1.0])
    one = Record("0" * 16, "1" * 16, session, "2" * 64, numbers[0], affine, {"age": numbers[1]}, "N4 1", 3, ("t2",))
    parts = [{"affine": affine, "attributes": {"b": numbers[k]}, "facts": {"c": numbers[:2]}} for k in range(images)]
    two = replace(one, key="3" * 16, attributes={})
    two = replace(two, images=images_of(two, parts))
    write_records(folder, [one, two])
    expected = [one, *(two.images or [two])]
    found = read_records(folder)[1]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for name in ("key", "person", "sha256", "tools", "levels", "beside", "index", "num_images", "file", "images"):
            assert getattr(a, name) == getattr(b, name)
        assert a.session == b.session.encode(errors="backslashreplace").decode() or "\r" in session or "\n" in session
        np.testing.assert_array_equal(a.affine, b.affine)
        for kept, written in ((a.attributes, b.attributes), (a.facts, b.facts), ({"": a.cut}, {"": b.cut})):
            for name, value in kept.items():
                np.testing.assert_array_equal(value, written.get(name, np.full(np.shape(value), np.nan)))
