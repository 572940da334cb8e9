"""The shipped experiments at the least size, as the tests run them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from lit_medgen.__main__ import main

ROOT = Path(__file__).parents[1]
TWO_STAGES = ("absorbing.yaml", "ihdm.yaml")


@cache
def first_stage(phantoms: Path) -> Path:
    """The checkpoint of a VQGAN after two steps, made once."""
    run = TinyRun(phantoms.with_name(f"{phantoms.name}_vqgan"), phantoms, ("configs/vqgan.yaml",))
    assert run.fit() == 0
    return run.last


class TinyRun:
    """A shipped experiment (cDPM's, unless told otherwise) at the least size, in a folder of its own."""

    def __init__(self, folder: Path, phantoms: Path, configs: tuple[str, ...] = ("configs/cdpm.yaml",)) -> None:
        self.folder = folder
        method = Path(configs[0]).name
        configs = (*configs, "tests/tiny/any.yaml", f"tests/tiny/{method}")
        self.configs = [word for name in configs for word in ("--config", name)]
        self.options = [f"--data.init_args.root={phantoms}", f"--data.init_args.store_dir={phantoms / 'store'}"]
        if "configs/demo/cdpm.yaml" in configs:
            self.options.append("--model.init_args.atlas_modes=1")  # of three people
        if method in TWO_STAGES:
            self.options.append(f"--model.init_args.first_stage={first_stage(phantoms)}")

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return next(self.folder.glob("*/checkpoints/last.ckpt"))

    def fit(self, *more: str) -> int:
        """Trains two steps unless told otherwise."""
        return main(["fit", *self.configs, *self.options, f"--trainer.default_root_dir={self.folder}", *more])

    def on_checkpoint(self, verb: str, *more: str) -> int:
        """Runs a verb on the newest checkpoint, without any config."""
        return main([verb, "--ckpt_path", str(self.last), "--trainer.accelerator=cpu", *more])


def one_line(captured: pytest.CaptureFixture[str]) -> str:
    """The error: one line, and no traceback anywhere."""
    printed = captured.readouterr()
    assert "Traceback" not in printed.out + printed.err, printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, printed.err
    return lines[0]
