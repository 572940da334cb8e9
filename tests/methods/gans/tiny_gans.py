"""Every GAN that is shipped, at the least size of tests/tiny, and batches for it."""

from __future__ import annotations

import math
from typing import Any

import torch
import yaml
from tiny_run import BASES, ROOT, made

import lit_medgen.methods
from lit_medgen.batch import Batch, Condition
from lit_medgen.training.adversarial import Adversarial


def method_of(base: str) -> type:
    """The class that a shipped config trains."""
    name: str = yaml.safe_load((ROOT / base).read_text())["model"]["class_path"]
    found: type = getattr(lit_medgen.methods, name.rpartition(".")[2])
    return found


GANS = tuple(base for base in BASES if method_of(base).__module__.startswith("lit_medgen.methods.gans."))


def built(base: str, **arguments: Any) -> Any:
    """The method of a shipped config at the least size, with other arguments where some are given."""
    sections = [yaml.safe_load((ROOT / path).read_text()) for path in (base, base.replace("configs/", "tests/tiny/"))]
    torch.manual_seed(0)
    return made(Adversarial, [*(section["model"] for section in sections), {"init_args": arguments}])


def batch_of(model: Any, num: int = 3) -> Batch:
    """Images of the network's size, dark and bright voxels, and their label maps where images are made from such."""
    torch.manual_seed(1)
    network = model.network
    image = torch.rand(num, network.in_channels, *network.size) * 2 - 1
    return Batch(image, [str(n) for n in range(num)], torch.eye(4).expand(num, 4, 4), condition_of(model, num))


def condition_of(model: Any, num: int) -> Condition:
    """What a method makes so many images from: nothing, or label maps of every class."""
    if "label_map" not in model.required:
        return Condition()
    size = (num, 1, *model.network.size)
    return Condition(label_map=torch.arange(math.prod(size)).view(size) // 3 % model.network.num_classes)
