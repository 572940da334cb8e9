"""The shipped experiments at the least size, as the tests run them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from lit_medgen.__main__ import main
from lit_medgen.seeds import mix

ROOT = Path(__file__).parents[1]
BASES = tuple(sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*.yaml")))
LIDC = "data_modules.LIDCDataModule"
CHESTXRAY = "data_modules.ChestXrayDataModule"
SIZES = {LIDC: "ct", CHESTXRAY: "radiographs"}
"""Data module -> the file of tests/tiny that makes its images small; volumes.yaml for others."""


def frozen_parts(config: str) -> dict[str, str]:
    """Options of a shipped method that name a checkpoint, each with the config that trains it."""
    arguments = yaml.safe_load((ROOT / config).read_text())["model"].get("init_args", {})
    paths = {name: Path(value) for name, value in arguments.items() if str(value).endswith(".ckpt")}
    return {name: f"configs/{path.parent.parent.name}.yaml" for name, path in paths.items()}


def data_module(configs: tuple[str, ...]) -> str:
    """The class that reads the data of an experiment."""
    sections = [yaml.safe_load((ROOT / config).read_text()).get("data", {}) for config in configs]
    found: str = [section["class_path"] for section in sections if "class_path" in section][-1]
    return found


def group_of(base: str) -> str:
    """The tests that belong on one worker with those of a method: they share runs (`run_of`) and phantoms.

    Those on chests, whose phantoms are slow to write; of the others those that build on the same first stage.
    """
    if (data := data_module((base,))) in SIZES:
        return data
    return next((group_of(part) for part in frozen_parts(base).values()), base)


TWINS = ("autoencoder_kl", "autoencoder_kl_ct", "ddpm", "ldm")
"""Methods of which another shipped config has the class, for images of other data: the slow set runs them through what
is a law of the class."""
TWO_STAGES = tuple(config for config in BASES if frozen_parts(config))


def made(kind: type, sections: list[dict[str, Any]]) -> Any:
    """What the sections of several configs, each over those before, describe together."""
    return maker(kind, sections)()


def maker(kind: type, sections: list[dict[str, Any]]) -> Callable[[], Any]:
    """What makes that as often as it is called; the sections are parsed once."""
    parser, config = ArgumentParser(exit_on_error=False), None
    parser.add_subclass_arguments(kind, "it", required=True)
    for section in sections:
        config = parser.parse_object({"it": section}, *([config] if config else []))
    return lambda: parser.instantiate(config).it


def first_stage(phantoms: Path, *configs: str) -> Path:
    """The checkpoint of a first stage after two steps, made once; a VQGAN unless told otherwise."""
    return run_of(phantoms, configs or ("configs/vqgan.yaml",)).last


@cache
def run_of(phantoms: Path, configs: tuple[str, ...]) -> TinyRun:
    """The run of an experiment after two steps, made once; its folder is read only."""
    name = "_".join([phantoms.name, *(config.removeprefix("configs/").replace("/", "_") for config in configs)])
    run = TinyRun(phantoms.with_name(name), phantoms, configs)
    assert run.fit() == 0
    return run


# Raw data, in the layout that the data module of an experiment reads.


@cache
def ukbiobank(phantoms: Path) -> Path:
    """Six phantom people as bulk zips of UK Biobank, beside the others, written once."""
    folder = phantoms.with_name(f"{phantoms.name}_ukbiobank")
    assert main(["phantom", "ukbiobank", "--out", str(folder), "--num_subjects", "6", "--seed", "1"]) == 0
    return folder


@cache
def table_of(folder: Path) -> Path:
    """A table of images and people as that of IXI, of the phantoms of ADNI, which serve as a plain folder."""
    rows = ["participant_id\tperson\tage\tsex\tventricles_ml\tbrain_ml"]
    for path in sorted(folder.rglob("*.nii")):
        name = path.relative_to(folder).as_posix()
        person, number = name.split("/")[0], mix(name) % 40
        rows.append(f"{name}\t{person}\t{30 + number}\t{'FM'[number % 2]}\t{9 + number}\t{1100 + number}")
    table = folder.parent.with_name(f"{folder.parent.name}.tsv")
    table.write_text("\n".join(rows))
    return table


@cache
def chests(phantoms: Path) -> Path:
    """Twelve phantom people as a download of LIDC-IDRI, two slices of each, beside the others, written once."""
    folder = phantoms.with_name(f"{phantoms.name}_chests")
    words = ["--num_subjects", "12", "--num_slices", "2", "--seed", "1"]
    assert main(["phantom", "lidc", "--out", str(folder), *words]) == 0
    return folder


@cache
def radiographs(phantoms: Path) -> Path:
    """Twelve phantom people as a download of ChestX-ray14, beside the others, written once."""
    folder = phantoms.with_name(f"{phantoms.name}_radiographs")
    words = ["--num_subjects", "12", "--size", "32", "--seed", "1"]
    assert main(["phantom", "chestxray", "--out", str(folder), *words]) == 0
    return folder


def raw_data(phantoms: Path, configs: tuple[str, ...]) -> dict[str, str]:
    """Arguments of the data module of an experiment that name its raw data."""
    match data_module(configs):
        case name if name == LIDC:
            return {"root": str(chests(phantoms)), "seed": "0"}
        case name if name == CHESTXRAY:
            return {"root": str(radiographs(phantoms)), "seed": "0"}
        case "data_modules.UKBiobankDataModule":
            folder = ukbiobank(phantoms)
            nobody = folder.with_name(f"{folder.name}_withdrawals.txt")
            nobody.touch()  # so few people must all stay; this seed leaves two to train and two to test
            return {"root": str(folder), "withdrawals": str(nobody), "seed": "0"}
        case "data_modules.FolderDataModule":  # no IXI here
            folder = phantoms / "ADNI"
            return {"root": str(folder), "pattern": "**/*.nii", "table": str(table_of(folder)), "person": "person"}
    return {"root": str(phantoms)}


class TinyRun:
    """A shipped experiment (cDPM's, unless told otherwise) at the least size, in a folder of its own."""

    def __init__(self, folder: Path, phantoms: Path, configs: tuple[str, ...] = ("configs/cdpm.yaml",)) -> None:
        self.folder = folder
        raw = raw_data(phantoms, configs)
        parts = {
            name: run_of(phantoms, self._of_same_people(part, raw, phantoms)).last
            for name, part in frozen_parts(configs[0]).items()
        }
        # What is made small: all of them, and each config by the file of the same name.
        tiny = [name.replace("configs/", "tests/tiny/") for name in configs]
        size = SIZES.get(data_module(configs), "volumes")
        every = "tests/tiny/any.yaml", f"tests/tiny/{size}.yaml"
        configs = (*configs, *every, *[name for name in tiny if (ROOT / name).is_file()])
        self.configs = [word for name in configs for word in ("--config", name)]
        self.options = [f"--data.init_args.{name}={value}" for name, value in raw.items()]
        self.options += [f"--data.init_args.store_dir={phantoms / 'store'}"]
        self.options += [f"--model.init_args.{name}={path}" for name, path in parts.items()]

    @staticmethod
    def _of_same_people(part: str, raw: dict[str, str], phantoms: Path) -> tuple[str, ...]:
        """The configs that train a part on the people of some raw data, with IXI's overlay where its own differ."""
        if Path(raw["root"]).is_relative_to(raw_data(phantoms, (part,))["root"]):
            return (part,)
        return part, part.replace("configs/", "configs/ixi/")

    def copied(self, folder: Path) -> TinyRun:
        """The same run in another folder, where it can go on."""
        shutil.copytree(self.folder, folder, symlinks=True)
        other = copy(self)
        other.folder = folder
        return other

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
