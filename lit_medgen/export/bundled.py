"""The network of a MONAI bundle: a whole method, which makes images of seeds. MONAI builds it from inference.json.

What it is built from stands in the config itself, in base64: a bundle does not know where it lies, and MONAI would
read some signs in texts as references. Nothing of it is unpickled, and classes of others are refused as in checkpoints.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from lit_medgen.batch import Request
from lit_medgen.checkpoints import FACTS
from lit_medgen.errors import InputError
from lit_medgen.exported import REMEDY, as_json, from_json
from lit_medgen.files import file_hash
from lit_medgen.loading import build_method, check_classes
from lit_medgen.requests import RequestOptions, requested
from lit_medgen.sample_files import SampleFile, format_for, sample_files, sample_names
from lit_medgen.sampling import origin, samples
from lit_medgen.training.generator import Generator


class Bundled(nn.Module):
    """A generator without weights, which MONAI or `read` loads.

    Args:
        record: of the method, as `packed` gives it.
        tensors: of the record, likewise.
        weights_sha256: of the file of its weights.

    Attributes:
        method: the generator.
    """

    method: Generator

    def __init__(self, record: str, tensors: str, weights_sha256: str) -> None:
        super().__init__()
        content = from_json(json.loads(base64.b64decode(record)), load(base64.b64decode(tensors)))
        check_classes(content["config"], "the bundle's network_def")
        self.method = build_method(content["config"])
        self.method.on_load_checkpoint({FACTS: content, "state_dict": {}})
        self.weights_sha256 = weights_sha256
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Images b c *size in [-1, 1], on the device of the seeds, from seeds b 1 (whole numbers, of any type)."""
        seeds = [int(seed) for seed in image.flatten().tolist()]
        return self.method.predict_step(Request(seeds)).to(image.device)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `torch.nn.Module.to`; the method notes the device, which it does not where its parent alone is moved."""
        self.method.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def read(self, path: str) -> None:
        """Loads weights; InputError if they are not those that the bundle was made with."""
        if not Path(path).is_file():
            raise InputError(f"ckpt_path: no file '{path}'; give --bundle_root, the folder of the bundle.")
        if (found := file_hash(Path(path))) != self.weights_sha256:
            raise InputError(f"{path}: its SHA-256 is {found[:12]}, expected {self.weights_sha256[:12]}; {REMEDY}.")
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def write(self, out: str, seeds: Sequence[int], batch_size: int, asked: Mapping[str, Any]) -> list[str]:
        """Writes an image for each seed, marked as `sample` marks it; returns the names of the files.

        Args:
            out: the folder.
            seeds: n.
            batch_size: images at once.
            asked: what they are made from, by the options of `sample`: attributes, label_maps, sources and so on.
        """
        spec = self.method.needed_spec()
        requests = requested(RequestOptions(seeds=list(seeds), **asked), self.method, spec, None)
        kind, format, folder = origin(requests.of_patients), format_for(spec, None), Path(out)
        names = sample_names(requests.seeds, kind)
        outputs = sample_files(folder, names, format)
        outputs.claim()
        outputs.clear()
        file, images = SampleFile(format, spec, kind, self.weights_sha256), samples(self.method, requests, batch_size)
        for name, image in zip(names, (each for batch in images for each in batch), strict=True):
            file.write(folder, name, image, None)
        outputs.end()
        return names


def packed(record: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of `Bundled` that hold a record: its plain data and its tensors, in base64."""
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(as_json(record, tensors))
    content = save({name: value.detach().cpu().contiguous().clone() for name, value in sorted(tensors.items())})
    return {"record": base64.b64encode(plain.encode()).decode(), "tensors": base64.b64encode(content).decode()}
