"""CT series of any source in the form of LIDC-IDRI's download: links to files, and XML in which nobody drew nodules.

So `LIDCDataModule` prepares whole slices, with label maps of body and lungs, of scans that have no annotations.

    python -m benchmarks.plain_slices --out data/plain_ct <folders with DICOM series>
    python -m lit_medgen prepare --data configs/data/lidc.yaml --data.init_args.root=data/plain_ct \
        --data.init_args.ct.share=1 --data.init_args.ct.max_thickness_mm=5 --data.init_args.ct.single_slices=true
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pydicom

from data_modules.listing import is_dicom
from data_modules.phantoms.lidc_database import Scan
from data_modules.phantoms.lidc_xml import message_of, write_xml
from lit_medgen.files import Outputs
from lit_medgen.images.dicom import group_by_series
from lit_medgen.seeds import mix

FOLDER = "series"
COMMENT = "No reader has looked for nodules in this series."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("scans", nargs="+", help="folders with DICOM series of CT")
    options = parser.parse_args()
    folders = write_plain([Path(folder) for folder in options.scans], Path(options.out))
    print(f"{len(folders)} series in {options.out}")


def write_plain(sources: Sequence[Path], out: Path) -> list[Path]:
    """The folders of the series, each with links to its files and an XML file."""
    outputs = Outputs(out, "plain-slices", [FOLDER])
    outputs.claim()
    files = sorted(path for source in sources for path in source.rglob("*") if path.is_file() and is_dicom(path))
    written = [_write(series, out / FOLDER) for series in group_by_series(files)]
    outputs.end()
    return written


def _write(files: Sequence[Path], out: Path) -> Path:
    """Patient, study and series are folders, by their IDs."""
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    patient, study, series = (
        str(header[name].value) for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
    )
    folder = out / patient / study / series
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(files, start=1):
        link = folder / f"1-{number:03}.dcm"
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    scan = Scan(patient, study, series, 0.0, 0.0, contrast=False, z_mm=(), annotations=())
    message = message_of(scan, [[]], lambda *parts: f"2.25.{mix('plain', series, *parts)}", COMMENT)
    write_xml(folder / "001.xml", message)
    return folder


if __name__ == "__main__":
    main()
