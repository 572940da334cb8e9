"""Small real chest radiographs in the form of ChestX-ray14's download: 749 of 256 x 256 pixels and 746 of 64 x 64.

They are a public selection, of which six images are there in both sizes; then the larger one is taken. The rows of the
table are those of the complete one. Give them to a loader that makes all 64 x 64.

    python -m benchmarks.small_xrays --out data/chestxray64

Images: NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC; Wang X. et al., "ChestX-ray8", CVPR 2017.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from lit_medgen.files import Outputs

SOURCE = "shared/data/cxr"
TABLE = "Data_Entry_2017_v2020.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--xrays", default=SOURCE, help="folder with images_256/, nih64.npz and metadata_full/")
    options = parser.parse_args()
    print(f"{write_xrays(Path(options.xrays), Path(options.out))} images in {options.out}")


def write_xrays(xrays: Path, out: Path) -> int:
    """Writes the images and the rows of the table that are theirs; returns the number of images."""
    outputs = Outputs(out, "small-xrays", ["images/*.png", TABLE])
    outputs.claim()
    (out / "images").mkdir(exist_ok=True)
    with np.load(xrays / "nih64.npz") as small:
        pixels = dict(zip(map(str, small["names"]), small["images"], strict=True))
    for name, image in pixels.items():
        Image.fromarray(image).save(out / "images" / name)
    larger = sorted((xrays / "images_256").glob("*.png"))
    for path in larger:
        (out / "images" / path.name).write_bytes(path.read_bytes())
    names = pixels.keys() | {path.name for path in larger}
    with gzip.open(xrays / "metadata_full" / f"{TABLE}.gz", "rt", newline="") as file:
        first, *rows = csv.reader(file)
    with (out / TABLE).open("w", newline="") as file:
        csv.writer(file).writerows([first, *(row for row in rows if row[0] in names)])
    outputs.end()
    return len(names)


if __name__ == "__main__":
    main()
