"""Images of two channels for methods of one: refused before they are prepared, in lines that say what would fit."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from tiny_run import BASES, ROOT, SIZES, data_module, frozen_parts, made

from data_modules.base import MedicalDataModule
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.training.method import Method

KINDS = [f"configs/{name}.yaml" for name in ("cdpm", "crop_judge", "ddpm_2d", "ihdm", "upscaler", "vdm", "wgan")]
"""Configs that share no code of the refusal."""
ONE, TWO = ("t1",), ("t1", "flair")
MAX_LINES = 3
KEY_AND_NUMBER = re.compile(
    r"model\.init_args\.(\S+) is (\d+), .*(?:; give| are) (\d+)(?:; give that)?\.$", re.MULTILINE
)


def sections(base: str, name: str) -> list[dict[str, Any]]:
    """A section of a shipped config at the least size, without the parts that it reads from checkpoints."""
    size = SIZES.get(data_module((base,)), "volumes")
    files = base, "tests/tiny/any.yaml", f"tests/tiny/{size}.yaml", base.replace("configs/", "tests/tiny/")
    return [section for file in files if (section := yaml.safe_load((ROOT / file).read_text()).get(name))]


def spec_of(base: str, channels: tuple[str, ...]) -> DataSpec:
    """What the shipped data would give with these channels; no image is read."""
    module: MedicalDataModule = made(MedicalDataModule, sections(base, "data"))
    return replace(module.shape(), channels=len(channels), channel_names=channels)


def fitting(base: str, channels: tuple[str, ...]) -> Method:
    """The shipped method, with each key set as the refusals say until there is none, on untrained parts made so too."""
    spec, overlays, parts = spec_of(base, channels), list[dict[str, Any]](), frozen_parts(base)
    for _ in range(MAX_LINES + 1):
        try:
            model: Method = made(Method, sections(base, "model") + overlays)
            model.take_spec(spec)
            model.take_parts(**{name: fitting(part, channels) for name, part in parts.items()})
            model.before_data(spec, None)
        except (InputError, ValueError) as refused:
            overlays.append(as_told(str(refused)))
        else:
            return model
    pytest.fail(f"{base} still does not fit after {MAX_LINES} keys were set")


def as_told(line: str) -> dict[str, Any]:
    """The overlay of the model section that a line asks for."""
    told = KEY_AND_NUMBER.search(line)
    assert told, line
    overlay: Any = int(told[3])
    assert overlay != int(told[2]), line
    for name in reversed(["init_args", *told[1].split(".")]):
        overlay = {name: overlay}
    found: dict[str, Any] = overlay
    return found


@pytest.mark.parametrize("base", KINDS)
def test_two_channels_are_refused_in_one_line(base: str) -> None:
    refused(fitting(base, ONE), spec_of(base, TWO))


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_what_the_lines_say_makes_two_channels_fit(base: str) -> None:
    refused(fitting(base, ONE), spec_of(base, TWO))
    refused(fitting(base, TWO), spec_of(base, ONE))


def refused(model: Method, spec: DataSpec) -> None:
    """Images of other channels are refused by `fit` before they are prepared, and by every setup."""
    for refuse in (lambda: model.before_data(spec, None), lambda: model._check_data(spec)):
        with pytest.raises(InputError, match=r"^[^\n]*channel\S* (is|of the images is) [^\n]*$"):
            refuse()


@pytest.mark.parametrize("base", ["configs/vqgan.yaml", "configs/spade_gan.yaml"])
def test_features_of_a_file_are_of_grey_images_or_colours(base: str) -> None:
    model: Any = fitting(base, TWO)
    model.features = "vgg16.pt"  # refused before it is read
    with pytest.raises(InputError, match=r"features of a TorchScript file .* 2 channels; give learned"):
        model.before_data(spec_of(base, TWO), None)
