"""Nothing of the people leaves: names, numbers, paths and header texts of raw files stand in no output.

Canaries are planted in folder names, file names, headers and table cells. They may stand in `rejected.csv` and in what
`prepare` prints, which list raw files for their owner, and nowhere else.
"""

from __future__ import annotations

import base64
import csv
import getpass
import gzip
import socket
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml
from canaries import holding
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from tiny_run import ROOT

from lit_medgen.__main__ import main

pytestmark = pytest.mark.xdist_group("privacy")  # all look at one series of runs

NAME, PTID, MRN, WARD = "Zuckermann-Quast", "941_S_9999", "MRN73319904", "ward_kirschbaum"
UID, BIRTH = "1.2.840.99119.5551.7", "1947-03-29"
DESCRIP, AUX_FILE, DB_NAME, EXTENSION = "DescripHeckmeck", "AuxHeckmeck", "DbHeckmeck", "ExtensionHeckmeck"
CELL, SITE = "CellHeckmeck", "SiteHeckmeck"
CANARIES = (NAME, PTID, MRN, WARD, UID, BIRTH, DESCRIP, AUX_FILE, DB_NAME, EXTENSION, CELL, SITE)

SHARE = "share_quarzsand"
"""Of the data root's path, which may stand in a run's config and checkpoint, but never in W&B's files."""

HERE = ("user_moorhuhn", "cwd_moorhuhn", "argv_moorhuhn", "remote-moorhuhn", "commit_moorhuhn")
"""Of the user, the working folder, the command line and the git repository."""

NUM = 22


def write_raw(root: Path) -> None:
    """Everybody's NIfTI files, one DICOM series, two bad files, and a table."""
    shape = (16, 16, 16)
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    for k in range(NUM):
        voxels = np.random.default_rng(k).integers(50, 200, shape).astype(np.int16)
        write_nifti(root / WARD / f"{MRN}_{BIRTH}" / f"{PTID}{k}_{NAME}_{UID}.nii.gz", voxels, affine)
    for k, voxels in ((NUM, np.full(shape, 7, np.int16)), (NUM + 1, np.ones((2, *shape), np.int16))):
        write_nifti(root / WARD / f"{PTID}{k}_{NAME}.nii.gz", voxels, affine)
    write_series(root / WARD / f"{PTID}{NUM + 2}_{NAME}")
    with (root / "people.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["participant_id", "age", "site", "name", "mrn", "born", CELL])
        for k in range(NUM + 3):
            table.writerow([f"{PTID}{k}", 50 + k, SITE, NAME, MRN, BIRTH, CELL])


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=2)
    image.header["descrip"], image.header["aux_file"] = DESCRIP.encode(), AUX_FILE.encode()
    image.header["db_name"] = DB_NAME.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", EXTENSION.encode()))
    nib.save(image, path)


def write_series(folder: Path) -> None:
    folder.mkdir(parents=True)
    for k in range(8):
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, f"{UID}.{k}", UID
        data.PatientName, data.PatientID, data.PatientBirthDate = NAME, MRN, BIRTH.replace("-", "")
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-90, -90, 20.0 * k]
        data.PixelSpacing, data.SamplesPerPixel = [12, 12], 1
        data.Rows, data.Columns = 16, 16
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelData = np.random.default_rng(k).integers(0, 200, (16, 16)).astype("<i2").tobytes()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.save_as(folder / f"{UID}.{k}.dcm", enforce_file_format=True)


# The runs.


@dataclass(frozen=True)
class Outputs:
    """All that was written and printed."""

    raw: Path
    out: Path
    printed: dict[str, str]


def run(*words: str, code: int = 0) -> str:
    """What a command printed."""
    text = StringIO()
    with redirect_stdout(text), redirect_stderr(text):
        assert main(list(words)) == code, text.getvalue()
    return text.getvalue()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """prepare, fit, sample, evaluate with a page for readers, audit, export in every form, and a run that fails."""
    folder = tmp_path_factory.mktemp("privacy")
    raw, out = folder / SHARE, folder / "out"
    out.mkdir()
    write_raw(raw)
    fit, data = commands(raw, out)
    printed = {"prepare": run("prepare", "--data", str(data))}
    printed["fit"] = run(*fit, "--name=csv")
    last = str(out / "runs/csv/checkpoints/last.ckpt")
    printed["sample"] = run("sample", "--ckpt_path", last, "--num=2", f"--out={out / 'samples'}", *CPU)
    page = ("--num=3", "--quartets=1")
    printed["evaluate"] = run("evaluate", "--ckpt_path", last, *page, f"--out={out / 'report'}", *CPU)
    printed["audit"] = run("audit", "--ckpt_path", last, "--num=2", f"--out={out / 'audit'}", *CPU)
    card = (f"--report={out / 'report'}", f"--audit={out / 'audit'}")
    for form in ("safetensors", "bundle", "torchscript"):
        printed["export"] = run("export", "--ckpt_path", last, "--format", form, *card, f"--out={out / form}")
    for path in out.glob("store/*/volumes/*.npy"):
        path.write_bytes(bytes(path.stat().st_size))
    printed["error"] = run(*fit, "--name=error", code=2)
    return Outputs(raw, out, printed)


CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1")


def commands(raw: Path, out: Path) -> tuple[list[str], Path]:
    """`fit` on the raw files, and the file with its data section."""
    section = {
        "class_path": "data_modules.FolderDataModule",
        "init_args": {
            "root": str(raw),
            "pattern": "**/*",
            "table": "people.csv",
            "key": "participant_id",
            "attributes": ["age", "site"],
            "codes": {"site": {SITE: 1.0}},
            "store_dir": str(out / "store"),
            "preprocessing": {"size": [16, 16, 16], "field_of_view_mm": [192, 192, 192]},
            "fractions": [0.5, 0.1, 0.4],
            "seed": 1,  # leaves people for every split
            "num_jobs": 1,
        },
    }
    data = raw.parent / "data.yaml"
    data.write_text(yaml.safe_dump(section))
    config = raw.parent / "config.yaml"
    # The codes are the user's words in the config, so they stay out of the one whose outputs are searched.
    shown = {**section, "init_args": {name: value for name, value in section["init_args"].items() if name != "codes"}}  # type: ignore[attr-defined]
    config.write_text(yaml.safe_dump({"data": shown}))
    configs = [
        str(ROOT / "configs/cdpm.yaml"),
        *(str(ROOT / f"tests/tiny/{name}.yaml") for name in ("any", "cdpm")),
        str(config),
    ]
    words = [word for name in configs for word in ("--config", name)]
    return ["fit", *words, f"--trainer.default_root_dir={out / 'runs'}"], data


def test_the_search_finds_every_canary(outputs: Outputs, tmp_path: Path) -> None:
    assert {word for _, word in holding(CANARIES, outputs.raw)} == set(CANARIES)
    for k in range(3):
        secret = bytes(k) + PTID.encode() + b"more"
        (tmp_path / f"{k}.b64").write_bytes(base64.b64encode(secret))
        (tmp_path / f"{k}.gz").write_bytes(gzip.compress(secret))
        with zipfile.ZipFile(tmp_path / f"{k}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inside", base64.b64encode(secret))
    found = {name for name, _ in holding((PTID,), tmp_path)}
    assert found == {f"{k}.{kind}" for k in range(3) for kind in ("b64", "gz", "zip")}


def test_no_canary_in_any_output(outputs: Outputs) -> None:
    written = {path.suffix for path in outputs.out.rglob("*") if path.is_file()}
    assert {".csv", ".yaml", ".ckpt", ".npy", ".json", ".md", ".png", ".gz", ".html", ".safetensors", ".pt"} <= written
    found = {(name, word) for name, word in holding(CANARIES, outputs.out) if name != "rejected.csv"}
    assert not found


def test_the_data_root_stands_in_configs_and_checkpoints_alone(outputs: Outputs) -> None:
    found = {name for name, _ in holding((SHARE,), outputs.out)}
    assert {Path(name).suffix for name in found - {"rejected.csv"}} <= {".yaml", ".ckpt"}


def test_the_owner_sees_which_files_were_rejected(outputs: Outputs) -> None:
    stores = list(outputs.out.glob("store/*/rejected.csv"))
    assert len(stores) == 2  # without the codes, `fit` knows other attributes, so it has a store of its own
    for k in (NUM, NUM + 1):
        assert all(f"{PTID}{k}_{NAME}.nii.gz" in listed.read_text() for listed in stores)
        assert f"{PTID}{k}_{NAME}.nii.gz" in outputs.printed["prepare"]


@pytest.mark.parametrize("verb", ["fit", "sample", "evaluate", "audit", "export", "error"])
def test_no_canary_is_printed(verb: str, outputs: Outputs) -> None:
    assert not [word for word in CANARIES if word in outputs.printed[verb]]
    assert ("cannot be read" in outputs.printed[verb]) == (verb == "error")
    assert "Traceback" not in outputs.printed[verb]


def test_wandb_learns_nothing(outputs: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    cwd, out = tmp_path / "cwd_moorhuhn", tmp_path / "out"
    for path in (cwd, out):
        path.mkdir()
    git = ["git", "-c", "user.name=user_moorhuhn", "-c", "user.email=user_moorhuhn@example.org"]
    for words in (
        ["init", "--quiet"],
        ["remote", "add", "origin", "https://remote-moorhuhn.example/x.git"],
        ["commit", "--quiet", "--allow-empty", "--message", "commit_moorhuhn"],
    ):
        subprocess.run([*git, *words], cwd=cwd, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=cwd, check=True, capture_output=True, text=True).stdout
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["argv_moorhuhn", "--secret=argv_moorhuhn"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "user_moorhuhn")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(out))
    assert getpass.getuser() == "user_moorhuhn"
    fit, data = commands(outputs.raw, out)
    (tmp_path / "codes.yaml").write_text(yaml.safe_dump({"data": yaml.safe_load(data.read_text())}))
    overlay = ["--config", str(ROOT / "configs/with/wandb.yaml"), "--config", str(tmp_path / "codes.yaml")]
    run(*fit, *overlay, f"--trainer.logger.init_args.save_dir={out}")
    wandb.finish()
    wandb.teardown()
    (folder,) = out.glob("wandb/offline-run-*")
    assert list(folder.glob("*.wandb"))
    assert not holding((*CANARIES, SHARE), out / "wandb")
    for logs in folder.glob("logs/*"):  # W&B's own, which never leave; they name their own place
        logs.unlink()
    told = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not {name for name in told if not name.endswith((".wandb", ".png"))}  # no requirements, code, metadata
    (record,) = folder.glob("*.wandb")
    # A short host name may stand in the middle of any text.
    host = (socket.gethostname(),) if len(socket.gethostname()) > 4 else ()
    assert not holding((*HERE, *host, commit.strip(), str(tmp_path), str(ROOT), "torch=="), folder)
    assert b"train/loss" in record.read_bytes()
    assert b"lit_medgen.methods.CDPM" in record.read_bytes()
