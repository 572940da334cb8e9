"""The shipped experiments at the least size, as the tests run them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from lit_medgen.__main__ import main

ROOT = Path(__file__).parents[1]
BASES = tuple(sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*.yaml")))


def frozen_parts(config: str) -> dict[str, str]:
    """Options of a shipped method that name a checkpoint, each with the config that trains it."""
    arguments = yaml.safe_load((ROOT / config).read_text())["model"].get("init_args", {})
    paths = {name: Path(value) for name, value in arguments.items() if str(value).endswith(".ckpt")}
    return {name: f"configs/{path.parent.parent.name}.yaml" for name, path in paths.items()}


TWO_STAGES = tuple(config for config in BASES if frozen_parts(config))


def first_stage(phantoms: Path) -> Path:
    """The checkpoint of a VQGAN after two steps, made once."""
    return trained(phantoms, "configs/vqgan.yaml")


@cache
def trained(phantoms: Path, config: str) -> Path:
    """The checkpoint of a method that others build on, after two steps, made once."""
    run = TinyRun(phantoms.with_name(f"{phantoms.name}_{Path(config).stem}"), phantoms, (config,))
    assert run.fit() == 0
    return run.last


class TinyRun:
    """A shipped experiment (cDPM's, unless told otherwise) at the least size, in a folder of its own."""

    def __init__(self, folder: Path, phantoms: Path, configs: tuple[str, ...] = ("configs/cdpm.yaml",)) -> None:
        self.folder = folder
        parts = frozen_parts(configs[0])
        # What is made small: all of them, and each config by the file of the same name.
        tiny = [name.replace("configs/", "tests/tiny/") for name in configs]
        configs = (*configs, "tests/tiny/any.yaml", *[name for name in tiny if (ROOT / name).is_file()])
        self.configs = [word for name in configs for word in ("--config", name)]
        self.options = [f"--data.init_args.root={phantoms}", f"--data.init_args.store_dir={phantoms / 'store'}"]
        self.options += [f"--model.init_args.{name}={trained(phantoms, part)}" for name, part in parts.items()]

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
