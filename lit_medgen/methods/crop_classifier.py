r"""Crop classifier: what a small part of an image shows, told from noisy latents; it guides LSDM, or judges images.

Zu, "Fast and Precise Lung CT Image Generation via Diffusion Models" (MSc thesis, University of Twente, 2023), section
3.4 and figures 3.3 to 3.5; where the text and its public code differ, configs/crop_classifier.yaml has both values.

    z      = (E(x) - shift) / scale                                     the normalised latent of a crop
    z_t    = alpha_t z + sigma_t eps,     x_t = D(shift + scale z_t)    what the classifier sees    (eq. 3.7)
    loss   = -E log p(y | x_t, t),   Bernoulli for a binary label, Gaussian for a number

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), section 4, trains on noisy images in the same
way. Without a first stage it is a classifier of clean crops, a judge of what images show (t = 0).

What differs from the thesis:

- A number has a Gaussian likelihood whose variance is predicted from the noisy crop. The thesis takes the squared error
  of a sigmoid: the same with a fixed variance of 1/2, so that its guidance is as sure of pure noise as of an image.
- The thesis encodes crops in isolation, but guides crops cut out of the latent of a whole slice, which differ where the
  encoder saw the edge of the crop as the edge of an image, and in its group norms, whose statistics are those of the
  crop. With `crop`, whole images are encoded and their latents cut around the nodule of the label map, as LSDM cuts
  what is guided. With a view of crops, `margin` more pixels are encoded on each side and cut off again, which is not
  enough: in the demo's autoencoder, latents of 32 pixels differ from those of whole slices by 67 % of a standard
  deviation without a margin, by 51 % with one of 8 pixels and still by 23 % with 32.
- One network may tell several labels; a label that is not known is left out. The thesis trains one for each.
- Times are continuous and spread evenly over the batch rather than drawn one by one from T.

Shapes: b crops, c channels, *s their axes; d latent channels, *z the axes of the latent; k columns of the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_medgen.batch import Batch, DataSpec
from lit_medgen.diffusion import GaussianProcess, ScaledLinearBeta, Schedule
from lit_medgen.errors import InputError
from lit_medgen.images.nodules import nodule_classes
from lit_medgen.networks.protocols import LabelNetwork, as_module
from lit_medgen.seeds import SeededNoise, mix
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.frozen import FrozenPart
from lit_medgen.training.label_likelihoods import NUM_COLUMNS, Kind, LabelLikelihoods
from lit_medgen.training.label_skill import Predicted
from lit_medgen.training.latent_crops import NoduleCrops, StoredCrops
from lit_medgen.training.latent_scale import LatentScale, at_scale
from lit_medgen.training.latents import LatentStore, encoded, kept_of
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer
from lit_medgen.training.predicting import Predicting

TIMES = tuple(i / 10 for i in range(10))
"""At which validation and `evaluate` measure skill; 0 is the crop without noise."""
SAME_SPACING = 1.25
"""Pixels of crops and of the first stage's images may differ by this factor; scans have pixels of their own."""


class CropClassifier(Predicting):
    """Tells labels of crops from their noisy latents, decoded; or of clean crops, as a judge.

    Args:
        network: `UNetEncoder`, or any module called as network(x, t), as `LabelNetwork` describes; of one column for
            each binary output and two for each number.
        outputs: attribute of the data -> `binary` (0 or 1) or `number`.
        first_stage: checkpoint of the `AutoencoderKL` or other `FirstStage` whose latents it is told; None: a judge of
            clean crops.
        schedule: noise schedule, that of the model to guide; None: `ScaledLinearBeta` from 0.0015 to 0.0195.
        crop: pixels of each side of crops that are cut, in the latents, out of whole images around the largest nodule
            of their label map; None: the view gives crops.
        margin: pixels at each side of what the view reads that are encoded, but cut off again in the latent.
        symmetries: whether what the network sees in training is mirrored, and turned where it is square, at random.
        optimizer: makes the optimizer from the trained parameters.
        learning_rate_schedule: factor of the optimizer's learning rate at each step; None: constant.
    """

    first_stage: FirstStage
    scale: LatentScale

    def __init__(
        self,
        network: LabelNetwork,
        outputs: dict[str, Kind],
        first_stage: str | None = None,
        schedule: Schedule | None = None,
        crop: int | None = None,
        margin: int = 0,
        symmetries: bool = False,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(optimizer, learning_rate_schedule)
        self.network, self.labels = as_module(network), LabelLikelihoods(_checked(outputs))
        if (found := getattr(network, "out_channels", self.labels.num_columns)) != self.labels.num_columns:
            raise ValueError(
                f"model.init_args.network.init_args.out_channels is {found}; the outputs {outputs} need "
                f"{self.labels.num_columns}, one for each that is binary and two for each number."
            )
        if margin < 0 or (margin and not first_stage):
            raise ValueError(
                f"model.init_args.margin is {margin}; give 0 or more pixels, and 0 without a first stage, which alone "
                "has a use for them."
            )
        if crop is not None and (crop < 1 or margin or not first_stage):
            raise ValueError(
                f"model.init_args.crop is {crop}; give 1 or more pixels, with a first stage and without a margin."
            )
        if first_stage:
            make = "python -m lit_medgen fit --config configs/autoencoder_kl_ct.yaml"
            same = ("channels", "intensity_window")
            self.frozen_parts = {"first_stage": FrozenPart(Path(first_stage), FirstStage, make, same_facts=same)}
        else:
            self.skill_of = ("crops of test people", "")
        self.schedule = schedule or ScaledLinearBeta()
        self.process = GaussianProcess(self.schedule)
        self.crop = crop
        self.margin, self.symmetries, self.reads_images = margin, symmetries, first_stage is None

    skill_of = ("crops of test people, as far as their latents keep them", "the same from noisy latents")

    @property
    def is_judge(self) -> bool:
        """Whether it tells labels of clean crops, without a first stage."""
        return not self.frozen_parts

    @property
    def outputs(self) -> dict[str, Kind]:
        """Label -> `binary` or `number`."""
        return self.labels.kinds

    @property
    def crop_size(self) -> tuple[int, ...]:
        """Pixels of the crop along each axis, without margins."""
        return tuple(self.crop or side - 2 * self.margin for side in self.needed_spec().size)

    # What must fit together.

    def build(self) -> None:
        """Makes room for the scale of the latents."""
        if not self.is_judge:
            self.scale = LatentScale()

    def check_shape(self, shape: DataSpec) -> None:
        """InputError if crops do not fit the network, the first stage or the margin."""
        if len(shape.size) != getattr(self.network, "dim", len(shape.size)) or shape.slice_axis:
            raise InputError(
                f"model.init_args.network.init_args.dim is {getattr(self.network, 'dim', None)}, but the data gives "
                f"{'sets of slices' if shape.slice_axis else f'images of {len(shape.size)} axes'}; crop it with a view."
            )
        if shape.channels != (found := getattr(self.network, "in_channels", shape.channels)):
            raise InputError(f"model.init_args.network.init_args.in_channels is {found}; images have {shape.channels}.")
        if self.is_judge:
            return
        for name, pixels in (
            ("margin", (self.margin,)),
            ("the crop", (self.crop or 0,)),
            ("what the data shows", shape.size),
        ):
            if any(side % self.divisor for side in pixels):
                raise InputError(
                    f"model.init_args.first_stage: a pixel of its latents is {self.divisor} of an image, of which "
                    f"{name}, {' x '.join(map(str, pixels))}, is no multiple; change data.init_args.crop.init_args.size"
                    " or model.init_args.margin."
                )
        if self.crop and not nodule_classes(shape.classes):
            raise InputError("model.init_args.crop: the data has no label maps with nodules; crop it with a view.")
        if min(shape.size) <= 2 * self.margin:
            raise InputError(
                f"model.init_args.margin is {self.margin}, which leaves nothing of a crop of "
                f"{' x '.join(map(str, shape.size))}; let the view read 2 x {self.margin} pixels more than the crop."
            )

    def check(self, spec: DataSpec) -> None:
        """InputError if the data does not tell the labels, or shows them at another scale than the first stage saw."""
        super().check(spec)
        for name, kind in self.outputs.items():
            low, high = spec.attributes.get(name, (math.nan, math.nan))
            if not low < high or (kind == "binary" and name not in spec.codes):
                seen = (
                    "is no attribute of the data" if name not in spec.attributes else f"lies from {low:g} to {high:g}"
                )
                known = ", ".join(spec.codes if kind == "binary" else spec.attributes) or "none"
                raise InputError(
                    f"model.init_args.outputs.{name}: {name} {seen} (training people), but a {kind} output needs "
                    f"{'0 and 1 and nothing between' if kind == 'binary' else 'different numbers'}; such are: {known}."
                )
        theirs = None if self.is_judge else self.first_stage.needed_spec().spacing_mm
        for ours, other in zip(spec.spacing_mm, theirs or spec.spacing_mm, strict=False):
            if max(ours / other, other / ours) > SAME_SPACING:  # not where one is unknown
                raise InputError(
                    f"data.init_args: pixels of {ours:.3g} mm, but {self.frozen_parts['first_stage'].path} was trained "
                    f"with {other:.3g} mm; prepare images in the same way."
                )

    @property
    def divisor(self) -> int:
        """Pixels of an image for each pixel of its latent."""
        return self.first_stage.needed_spec().size[0] // self.first_stage.latent_shape[1]

    def facts(self) -> dict[str, Any]:
        """What its outputs are, and which noise levels it was trained on; none of a judge."""
        facts: dict[str, Any] = {"outputs": [*map(list, self.outputs.items())], "margin": self.margin, "log_snr": None}
        if not self.is_judge:
            facts["log_snr"] = self.schedule.log_snr(torch.linspace(0.1, 0.9, 9, device=self.device)).cpu()
        return facts

    def restore(self, facts: dict[str, Any]) -> None:
        """InputError if it is asked for something else."""
        for name in ("outputs", "margin"):
            if (asked := self.facts()[name]) != facts[name]:
                raise InputError(
                    f"model.init_args.{name} is {asked}, but this model was trained with {facts[name]}; leave it so."
                )
        if not self.is_judge and not torch.allclose(self.facts()["log_snr"], facts["log_snr"], rtol=1e-4):
            raise InputError("model.init_args.schedule: another than this model was trained with; leave it as it was.")

    # Latents of crops.

    def on_fit_start(self) -> None:
        """Has batches hold latents instead of images; measures their scale. A judge reads images."""
        if self.is_judge:
            return
        store = LatentStore.of_data(self.first_stage, self.data, self.trainer)
        self.scale.measure(store, self.first_stage, self.data.people("train"), self.trainer)
        self.data.read_latents(StoredCrops(store, self.nodule_crops()) if self.crop else store)

    def nodule_crops(self) -> NoduleCrops:
        """What cuts crops out of what is kept of whole images."""
        spec = self.needed_spec()
        background = encoded(self.first_stage, torch.full((1, spec.channels, *spec.size), -1.0)).cpu()
        size = [side // self.divisor for side in self.crop_size]
        return NoduleCrops(nodule_classes(spec.classes), self.divisor, size, background)

    def on_train_start(self) -> None:
        """Logs the scale of the latents."""
        if not self.is_judge:
            self.scale.log(self.trainer)

    def latents(self, batch: Batch) -> Tensor:
        """The normalised latents of crops, without margins, b d *z in float32."""
        with torch.autocast(self.device.type, enabled=False):
            kept = kept_of(self.first_stage, batch)
            if self.crop and batch.latent is None:
                kept = self.nodule_crops()(kept, batch)
            z = self.scale.normalise(self.first_stage.latents(kept))
        margin = self.margin // self.divisor
        for axis, side in enumerate(z.shape[2:], start=2):
            z = z.narrow(axis, margin, side - 2 * margin)
        return z.contiguous()

    def decoded(self, z_t: Tensor) -> Tensor:
        """What the classifier sees of noisy normalised latents, b d *z -> b c *s in [-1, 1]; in float32."""
        with torch.autocast(self.device.type, enabled=False):
            return self.first_stage.decode(self.scale.denormalise(z_t.float()))

    def at_its_scale(self, z_t: Tensor, t: Tensor, scale: LatentScale) -> tuple[Tensor, Tensor]:
        """Noisy latents of another model as this one's: z_t, b d *z, and t, b, of equal log-SNR.

        See `latent_scale.at_scale`; ValueError if each channel has a scale of its own there.

        Args:
            z_t: noisy latents of the other model, normalised with its scale.
            t: their times, by the schedule that both share.
            scale: how the other model normalises.
        """
        return at_scale(z_t, t, self.schedule, scale, self.scale)

    # The loss.

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The negative log-likelihood of the labels in nats, summed over outputs, and that of each as loss_<name>.

        A mean over all images: one whose label is not known adds 0.
        """
        with torch.no_grad():
            x, t, share = self.seen(batch)
        found, labels = self.network(x, t), batch.condition.attributes
        losses = {f"loss_{name}": -(share * value).mean() for name, value in self._of_labels(found, labels).items()}
        return {"loss": torch.stack(list(losses.values())).sum()} | losses

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What the network is shown, b c *s: crops, or their decoded noisy latents; times b; their shares, b."""
        if self.is_judge:
            x, t, share = batch.image, *(full(len(batch.key), device=self.device) for full in (torch.zeros, torch.ones))
        else:
            z = self.latents(batch)
            t, share = self.times_and_shares(len(z), self.schedule.t_min)
            x = self.decoded(self.process.perturb(z, t, torch.randn_like(z)))
        return (mirrored(x) if self.symmetries and self.training else x), t, share

    def _of_labels(self, found: Tensor, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """log p of the wanted values, b each, from the network's columns, b k."""
        within = self.needed_spec().attributes
        return {
            name: self.labels.log_likelihood(found, name, wanted[name], within[name])
            for name in self.outputs
            if name in wanted
        }

    # What a guide and a judge are asked for.

    def log_likelihoods(self, z_t: Tensor, t: Tensor, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The log-likelihood log p(wanted | D(z_t), t) of each label that is wanted, b; gradients reach z_t.

        Args:
            z_t: noisy latents of crops without margins, b d *z, normalised with `scale` (see `at_its_scale`).
            t: their times, b.
            wanted: label -> values, b: 0 or 1, or numbers in the unit of the data; NaN for none, whose likelihood is 0.
        """
        if unknown := wanted.keys() - self.outputs.keys():
            raise ValueError(f"{', '.join(sorted(unknown))}: no output of this classifier ({', '.join(self.outputs)}).")
        return self.of_seen(self.decoded(z_t), t, wanted)

    def of_seen(self, x: Tensor, t: Tensor, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same from what `decoded` gives of noisy latents, b c *s."""
        return self._of_labels(self.network(x, t), wanted)

    @torch.no_grad()
    def judged(self, images: Tensor) -> dict[str, Tensor]:
        """Of clean crops without margins, b c *s in [-1, 1]: probabilities, or numbers in the unit of the data, b."""
        return self._expected(self.network(images, torch.zeros(len(images), device=images.device)))

    def _expected(self, found: Tensor) -> dict[str, Tensor]:
        within = self.needed_spec().attributes
        return {name: self.labels.expected(found, name, within[name]) for name in self.outputs}

    # Skill against time.

    @property
    def skill_times(self) -> tuple[float, ...]:
        """The times that skill is measured at."""
        return (0.0,) if self.is_judge else TIMES

    @torch.no_grad()
    def predicted(self, batch: Batch, people: Mapping[str, str]) -> Predicted:
        """What it tells of each crop at `skill_times`; noise depends on the crop's key alone."""
        z = None if self.is_judge else self.latents(batch)
        eps = None if z is None else SeededNoise([mix("skill", key) for key in batch.key]).like(z)
        values = []
        for time in self.skill_times:
            x, t = batch.image, torch.full((len(batch.key),), time, device=self.device)
            if z is not None and eps is not None:
                x = self.decoded(self.process.perturb(z, t, eps) if time else z)
            values.append(torch.stack(list(self._expected(self.network(x, t)).values()), dim=1))
        labels = torch.stack([batch.condition.attributes[name].float() for name in self.outputs], dim=1)
        return Predicted(batch.key, [people.get(key, "") for key in batch.key], labels, torch.stack(values, dim=1))


def mirrored(images: Tensor) -> Tensor:
    """Images b c *s, each mirrored along any axis or not, and, where the last two are as long, transposed or not."""
    for axis in range(2, images.ndim):
        images = torch.where(_coin(images), images.flip(axis), images)
    if images.shape[-1] == images.shape[-2]:
        images = torch.where(_coin(images), images.transpose(-1, -2), images)
    return images


def _coin(images: Tensor) -> Tensor:
    """True or false for each image, b and ones."""
    return torch.rand(len(images), *[1] * (images.ndim - 1), device=images.device) < 0.5


def _checked(outputs: Mapping[str, Kind]) -> Mapping[str, Kind]:
    """The outputs; ValueError if there is none, or one of another kind."""
    if not outputs or not set(outputs.values()) <= set(NUM_COLUMNS):
        raise ValueError(f"model.init_args.outputs is {outputs}; give attribute: binary or number, at least one.")
    return outputs
