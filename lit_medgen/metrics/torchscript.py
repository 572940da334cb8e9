r"""Networks from TorchScript files, called as NVIDIA's are: n 3 y x in 0 to 255.

Grey images are given three times; three channels are taken as colours, and other numbers are refused.

    features     with `return_features=True` where forward has that argument; what has places is averaged over them
    classes      with `no_output_bias=True`, without features, where forward has that argument
    perceptual   with `return_lpips=True` (and `resize_images=False`) where forward has it, as `vgg16.pt`: a vector n d,
                 of which squared distances are LPIPS (Zhang et al. 2018); else activations with places, n d y x or a
                 list of them, compared as those of the learned network are

`inception-2015-12-05.pt` gives features and classes; only its scores are what papers call FID and inception score. Its
features are averages over the image, which see no places, so they make no perceptual distance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_medgen.errors import InputError, describe
from lit_medgen.files import file_hash, pinned
from lit_medgen.metrics.paired import PerceptualDistance

Network = Callable[[Tensor], Tensor]


def from_file(source: str) -> tuple[Network, Network | None, str, nn.Module]:
    """A TorchScript network, the classifier in it if there is one, its name with hash, and the module of both.

    `source` is the file's path, after which `@sha256:` and digits may pin what is in it.
    """
    path = pinned(source)
    try:
        script = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"--features {path}: not a TorchScript file that can be read ({describe(error)}); give one, "
            "or learned, or none."
        ) from error

    def called_with(options: dict[str, bool]) -> Network:
        def pooled(slices: Tensor) -> Tensor:
            found = _called(script, slices, options)[-1]
            return found.flatten(2).mean(2) if found.ndim > 2 else found.flatten(1)

        return pooled

    network = called_with(_taken(script, return_features=True))
    # Without the bias of the output, as StyleGAN's authors take the inception score.
    without_bias = _taken(script, no_output_bias=True)
    classifier = called_with(without_bias) if without_bias else None
    return network, classifier, f"{path.name} (SHA-256 {file_hash(path)[:12]})", script


def perceptual_of_file(source: str, probe: Tensor) -> PerceptualDistance:
    """The distance that a file's network is good for; probe: n c y x in [-1, 1], to see what it gives.

    InputError if that has no places.
    """
    _, _, name, script = from_file(source)
    options = _taken(script, return_lpips=True, resize_images=False)
    if "return_lpips" in options:
        return PerceptualDistance(lambda slices: _called(script, slices, options), f"{name}, LPIPS", script, ready=True)
    options = _taken(script, return_features=True)

    def layers(slices: Tensor) -> list[Tensor]:
        return [found for found in _called(script, slices, options) if found.ndim == 4 and found[0, 0].numel() > 1]

    with torch.no_grad():
        if not layers(probe):
            shapes = ", ".join(str(tuple(found.shape[1:])) for found in _called(script, probe, options))
            raise InputError(
                f"features {source}: gives {shapes} for each image, which says nothing of places, as a perceptual "
                "distance must; give a TorchScript file whose forward takes return_lpips=True (NVIDIA's vgg16.pt) or "
                "returns activations n d y x, or learned, or none, or set perceptual_weight to 0."
            )
    return PerceptualDistance(layers, f"{name}, activations", script)


def refuse_channels(num: int) -> None:
    """InputError for images of so many channels, if they are neither grey nor colours."""
    if num not in (1, 3):
        raise InputError(
            f"features of a TorchScript file are of grey or colour images, but these have {num} channels; give "
            "learned, whose network reads them all, or none (model.init_args.features in training, --features of "
            "evaluate)."
        )


def _taken(script: nn.Module, **options: bool) -> dict[str, bool]:
    """Those of the options that its forward has an argument for."""
    arguments = {argument.name for argument in script.forward.schema.arguments}  # type: ignore[attr-defined]
    return {name: value for name, value in options.items() if name in arguments}


def _called(script: nn.Module, slices: Tensor, options: dict[str, bool]) -> list[Tensor]:
    """What the network gives for n c y x in [-1, 1], in float32; n 3 y x in 0 to 255 is what it takes."""
    refuse_channels(slices.shape[1])
    pixels = ((slices.clamp(-1, 1) + 1) * 127.5).expand(-1, 3, -1, -1)
    found = script.to(slices.device)(pixels, **options)
    return [part.float() for part in (found if isinstance(found, list | tuple) else [found])]
