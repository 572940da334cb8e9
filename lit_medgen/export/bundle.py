"""A MONAI bundle of a generator: what MONAI's own commands load, check and sample.

    configs/metadata.json     what it is, by MONAI's schema of 25 July 2024
    configs/inference.json    the network and how it samples
    models/model.pt           the averaged weights: tensors alone, loaded with `weights_only`
    docs/README.md            the model card
    LICENSE                   what is stated of it; only where something is

The mathematics stay ours: whoever runs the bundle needs lit_medgen beside MONAI.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lit_medgen import __version__
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.export.bundled import Bundled, packed
from lit_medgen.export.card import NOT_STATED, Stated, asked_by, model_card
from lit_medgen.files import replacing, write_atomically
from lit_medgen.training.frozen import weights_hash
from lit_medgen.training.generator import Generator

META, INFERENCE, WEIGHTS, CARD, LICENSE = (
    "configs/metadata.json",
    "configs/inference.json",
    "models/model.pt",
    "docs/README.md",
    "LICENSE",
)
BUNDLE_FILES = (META, INFERENCE, WEIGHTS, CARD, LICENSE)
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
OLDEST_MONAI = "1.5.2"
"""What is named where MONAI is not installed: the oldest that was run."""
MAX_SEED = 2**24 - 1
"""Up to here a float32, as MONAI checks networks with, tells seeds apart."""
NUM = 4


def write_bundle(folder: Path, model: Any, record: Mapping[str, Any], stated: Stated) -> None:
    """Writes the bundle; InputError for a method that makes no images, or that cannot be built from it alone."""
    if not isinstance(model, Generator):
        raise InputError(f"--format bundle: {type(model).__name__} makes no images; export it as safetensors.")
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(exist_ok=True)
    weights = {f"method.{name}": value.detach().cpu() for name, value in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as file:
        torch.save(weights, file)  # type: ignore[arg-type]
    network = {"_target_": f"{Bundled.__module__}.Bundled", **packed(record), "weights_sha256": file.sha256}
    write_atomically(folder / INFERENCE, json.dumps(_inference(network), indent=2))
    write_atomically(folder / META, json.dumps(_metadata(model, stated), indent=2))
    write_atomically(folder / CARD, model_card(model, stated, list(_usage(model))))
    if stated.license:
        write_atomically(folder / LICENSE, f"Licence of the weights: {stated.license}\n")
    built = Bundled(**{key: value for key, value in network.items() if key != "_target_"})
    built.read(str(folder / WEIGHTS))
    if weights_hash(built.method) != weights_hash(model):
        raise InputError("export: the model that was read back has other weights; this method cannot be exported.")


def _inference(network: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "ckpt_path": f"$@bundle_root + '/{WEIGHTS}'",
        "output_dir": "$@bundle_root + '/samples'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "seeds": list(range(NUM)),
        "batch_size": 1,
        "asked": {},
        "network_def": dict(network),
        "network": "$@network_def.to(@device)",
        "run": ["$@network.read(@ckpt_path)", "$@network.write(@output_dir, @seeds, @batch_size, @asked)"],
    }


def _metadata(model: Generator, stated: Stated) -> dict[str, Any]:
    """What MONAI's schema asks for, and what is stated."""
    spec = model.needed_spec()
    metrics = {name: row.get("value") for name, row in (stated.report.get("metrics") or {}).items()}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by lit_medgen {__version__}"},
        "monai_version": _version("monai", OLDEST_MONAI),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {"lit_medgen": __version__},
        "name": stated.name,
        "task": "Synthesis of medical images",
        "description": f"{type(model).__name__}: makes images of {spec.channels} x {list(spec.size)} voxels.",
        "authors": NOT_STATED,
        "copyright": stated.license or NOT_STATED,
        "intended_use": stated.intended_use or NOT_STATED,
        "eval_metrics": {name: value for name, value in metrics.items() if value is not None},
        "network_data_format": {"inputs": {"image": _seeds()}, "outputs": {"pred": _image(spec)}},
    }


def _seeds() -> dict[str, Any]:
    return {
        "type": "seed",
        "format": "whole numbers",
        "num_channels": 1,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [0, MAX_SEED],
        "is_patch_data": False,
        "channel_def": {"0": "seed of an image"},
    }


def _image(spec: DataSpec) -> dict[str, Any]:
    low, high = spec.intensity_window
    return {
        "type": "image",
        "format": "hounsfield" if spec.intensity_unit == "HU" else "magnitude",
        "num_channels": spec.channels,
        "spatial_shape": list(spec.size),
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
        "channel_def": {str(i): f"-1 is {low:g}, 1 is {high:g} ({spec.intensity_unit})" for i in range(spec.channels)},
    }


def _version(package: str, fallback: str = "unknown") -> str:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return fallback


def _usage(model: Generator) -> Iterator[str]:
    yield "In the folder of the bundle, with lit_medgen and MONAI installed (MONAI's command also needs `fire`):"
    yield ""
    yield "```bash"
    yield "python -m monai.bundle run --config_file configs/inference.json --seeds '[0, 1]'"
    yield "```"
    yield ""
    yield "writes an image for each seed to `samples/`. What images are made from stands in `asked`, by the options of "
    yield f"`python -m lit_medgen sample`{f' (here{asked_by(model)})' if asked_by(model) else ''}, for example "
    yield "`--asked#attributes '{\"age_years\": 70}'`. `monai.bundle.load` gives a network that makes images "
    yield "(b c *size in [-1, 1]) of seeds (b 1)."
