"""Pictures of a variational diffusion model: bound, schedule, images on their ways to noise and from it, samples.

python -m benchmarks.bound_pictures --ckpt_path runs/vdm_monotone_xrays/checkpoints/last.ckpt
--out docs/figures/vdm
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.data import data_of
from lit_medgen import load
from lit_medgen.batch import Condition, Request
from lit_medgen.images.grids import save_figure
from lit_medgen.loading import config_of
from lit_medgen.methods import VDM

COLUMNS, NUM_WAYS = 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True, help="of a VDM")
    parser.add_argument("--out", required=True, help="folder to write to")
    options = parser.parse_args()
    data = data_of(config_of(Path(options.ckpt_path))["data"])
    model = load(options.ckpt_path)
    assert isinstance(model, VDM)
    out = Path(options.out)
    with model.as_in_evaluation():
        requests = data.requests("test")
        first = Request.join([requests.read(i) for i in range(2 * COLUMNS)])
        assert first.target is not None
        ways = [model.trajectory(Condition(), seed) for seed in range(NUM_WAYS)]
        rows = {f"seed {seed}: what the network expects from noise to image": way for seed, way in enumerate(ways)}
        save_figure(out / "reverse.png", rows, COLUMNS)
        samples = model.sample(first.condition, range(2 * COLUMNS))
        rows = {
            "samples": samples[:COLUMNS],
            "unseen people of the same view, sex, age and findings": first.target[:COLUMNS],
            "more samples": samples[COLUMNS:],
        }
        save_figure(out / "samples.png", rows, COLUMNS)
        torch.manual_seed(0)
        model.look_at(first.target[:1])
    for name, write in model.plots().items():
        write(out / f"{name}.png")


if __name__ == "__main__":
    main()
