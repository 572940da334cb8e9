"""What guidance does to nodules, for a report: how far images change and where, pairs of them, and derivatives.

Images of the same test maps and seeds are made without guidance, and guided to either end of one label (figures 5.7 and
5.9 of Zu 2023). Derivatives are those of log p(label | x_t), in what the classifier sees (figure 5.4) and in the latent
(figure 5.5), of a real image at several levels of noise.

Shapes: n images, c channels, *s their axes; d latent channels, *z axes of latents, *k of crops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_medgen.batch import Condition, Request, Score, TrainingData
from lit_medgen.diffusion.likelihood_guidance import gradient
from lit_medgen.images.guidance_plots import Derivatives, save_derivatives, save_pairs
from lit_medgen.images.nodules import dilated, inside_nodules, nodule_classes
from lit_medgen.methods.crop_classifier import CropClassifier
from lit_medgen.metrics.base import mean_over_people
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.latent_crops import LatentCrops

if TYPE_CHECKING:
    from lit_medgen.methods.lsdm.lsdm import LSDM

NUM_MAPS = 16
"""Label maps with a nodule that images are made from; of a data set with fewer, all."""
NUM_SEARCHED = 64
"""Label maps of test people among which they are looked for."""
AT_ONCE = 8
"""Images that are made at once."""
FAR_PX = 16
"""Pixels from the grown nodule beyond which guidance should have changed nothing that can be seen."""
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""At which derivatives are shown."""


@dataclass(frozen=True)
class GuidanceEffect:
    """Images of the same maps and seeds, without guidance and guided to either end of a label.

    Attributes:
        name: of the label.
        ends: its values that images were guided to, low and high.
        real: the true images of the maps, n c *s, as all others in [-1, 1] and on the CPU.
        unguided: n c *s.
        guided: of each end, n c *s.
        inside: n 1 *s, bool: the grown nodules.
        beyond: n 1 *s, bool: what is farther than `FAR_PX` from them.
        people: n, whose each map is.
        crops: where the nodules are.
        derivatives: of the first map.
    """

    name: str
    ends: tuple[float, float]
    real: Tensor
    unguided: Tensor
    guided: tuple[Tensor, Tensor]
    inside: Tensor
    beyond: Tensor
    people: list[str]
    crops: LatentCrops
    derivatives: Derivatives

    @classmethod
    def of(cls, model: LSDM, data: TrainingData) -> GuidanceEffect | None:
        """That of the first label that the classifier tells and that guides; None without a nodule among test maps."""
        spec, (name, *_) = model.needed_spec(), _by_kind(model)
        request, people = _with_nodules(model, data)
        label_map, real = (None, None) if request is None else (request.condition.label_map, request.target)
        if request is None or label_map is None or real is None:
            return None
        low, high = ends = (0.0, 1.0) if name in model.categories else spec.attributes[name]
        unguided, *guided = (_made(model, request, name, value) for value in (torch.nan, low, high))
        inside = dilated(inside_nodules(label_map, nodule_classes(spec.classes)), model.dilation)
        crops = LatentCrops.around_nodules(
            label_map, nodule_classes(spec.classes), 1, _crop_size(model), torch.device("cpu")
        )
        beyond, shown = ~dilated(inside, 2 * FAR_PX + 1), _derivatives(model, request, name, ends)
        return cls(name, ends, real, unguided, (guided[0], guided[1]), inside, beyond, people, crops, shown)

    def scores(self) -> dict[str, Score]:
        """The mean change inside the grown nodule, and far from it, of each end, as a share of the image's range."""
        found = {}
        for value, images in zip(self.ends, self.guided, strict=True):
            change = (images - self.unguided).abs().mean(1, keepdim=True) / 2
            asked = f"change of images guided to {self.name} {value:g}, as a share of their range, "
            for key, mask, where in (
                ("inside", self.inside, "inside the grown nodule"),
                ("beyond", self.beyond, f"more than {FAR_PX} pixels from it"),
            ):
                found[f"guided_{self.name}_{value:g}_{key}"] = _mean(change, mask, self.people, asked + where)
        return found

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """Name -> function that writes the pairs, and the derivatives, as a PNG."""
        around = partial(self.crops.read, background=torch.tensor([-1.0]))
        rows = {"real": self.real, "unguided": self.unguided}
        rows |= {f"{self.name} {value:g}": images for value, images in zip(self.ends, self.guided, strict=True)}
        pairs = {title: (images, around(images)) for title, images in rows.items()}
        return {
            f"guided_{self.name}": partial(save_pairs, columns=pairs),
            f"derivatives_{self.name}": partial(save_derivatives, shown=self.derivatives),
        }


def _by_kind(model: LSDM) -> list[str]:
    """The labels that guide, binary ones first."""
    return sorted(model.wishes, key=lambda name: name not in model.categories)


def _crop_size(model: LSDM) -> tuple[int, ...]:
    """Pixels of the classifier's crops along each axis."""
    assert model.guide is not None
    return model.guide.crop_size


def _with_nodules(model: LSDM, data: TrainingData) -> tuple[Request | None, list[str]]:
    """The first requests like test people whose maps have a nodule, joined, and whose they are."""
    requests, classes = data.requests("test"), nodule_classes(model.needed_spec().classes)
    chosen: list[int] = []
    for index in range(min(NUM_SEARCHED, len(requests))):
        label_map = requests.read(index).condition.label_map
        if label_map is not None and inside_nodules(label_map, classes).any():
            chosen.append(index)
        if len(chosen) == NUM_MAPS:
            break
    everybody = data.people("test")
    request = requests.joined(chosen) if chosen else None
    return request, [everybody.get(key, "") for key in request.key] if request else []


def _made(model: LSDM, request: Request, name: str, value: float) -> Tensor:
    """The images of requests, asked to show one label alone, n c *s; NaN: without guidance."""
    found = []
    for start in range(0, len(request.seeds), AT_ONCE):
        seeds = request.seeds[start : start + AT_ONCE]
        condition = _asking(request, slice(start, start + AT_ONCE), name, value)
        found.append(model.predict_step(Request(seeds, condition)))
    return torch.cat(found)


def _asking(request: Request, rows: slice, name: str, value: float) -> Condition:
    """The label maps of some requests, and one label."""
    assert request.condition.label_map is not None
    label_map = request.condition.label_map[rows]
    return Condition({name: torch.full((len(label_map),), value)}, label_map)


def _mean(change: Tensor, mask: Tensor, people: Sequence[str], of: str) -> Score:
    """The mean over images of the change in a mask, both n 1 *s, with its jackknife interval over people."""
    size = mask.flatten(1).sum(1)
    kept = size.nonzero().flatten().tolist()
    if not kept:
        return Score(None, f"{of}: not measured, as there is no such pixel", num=0)
    values = ((change * mask).flatten(1).sum(1)[kept] / size[kept]).double()
    estimate = mean_over_people(values, [people[i] for i in kept])
    return Score(estimate.value, of, estimate.interval, len(kept))


def _derivatives(model: LSDM, request: Request, name: str, ends: tuple[float, float]) -> Derivatives:
    """Those of the first request's true image, at `TIMES`, noise from its seed."""
    assert request.target is not None
    device, guide = model.device, model.guide
    assert guide is not None
    with torch.no_grad():
        z = model.scale.normalise(model.first_stage.encode(request.target[:1].to(device)))
        eps = SeededNoise(request.seeds[:1]).like(z)
        nodules = model.nodules_of(_asking(request, slice(1), name, 0.0).label_map)  # type: ignore[arg-type]
    seen, in_image, in_latent = [], [], []
    for time in TIMES:
        t = torch.full((1,), time, device=device)
        z_t = model.denoiser.process.perturb(z, t, eps)
        with torch.no_grad():
            crop, at = nodules.crop(z_t, t)
            x = guide.decoded(crop)
        seen.append(x[0, 0].cpu())
        for value in ends:
            wanted = {name: torch.full((1,), value, device=device)}
            in_image.append(gradient(partial(_of_seen, guide, name, wanted), x, at)[0, 0].cpu())
            log_p = nodules.log_likelihood({name: model.wishes[name]}, wanted)
            in_latent.append(gradient(log_p, z_t, t)[0].sum(0).cpu())
    return Derivatives(name, ends, TIMES, seen, in_image, in_latent)


def _of_seen(guide: CropClassifier, name: str, wanted: Mapping[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """The log-likelihood of one label, b, from what the classifier sees."""
    return guide.of_seen(x, t, wanted)[name]
