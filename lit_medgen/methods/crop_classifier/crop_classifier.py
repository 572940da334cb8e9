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

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_medgen.batch import Batch, DataSpec
from lit_medgen.diffusion import GaussianProcess, ScaledLinearBeta, Schedule
from lit_medgen.errors import InputError
from lit_medgen.images.nodules import nodule_classes
from lit_medgen.methods.crop_classifier import fitting
from lit_medgen.methods.crop_classifier.symmetries import mirrored
from lit_medgen.networks.protocols import LabelNetwork, as_module
from lit_medgen.seeds import SeededNoise, mix
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.frozen import MAX_SPACING_RATIO, FrozenPart, spacing_ratio
from lit_medgen.training.label_likelihoods import Kind
from lit_medgen.training.label_skill import Predicted
from lit_medgen.training.latent_crops import NoduleCrops, StoredCrops
from lit_medgen.training.latent_scale import LatentScale, at_scale
from lit_medgen.training.latents import LatentStore, encoded, kept_of, without_images
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer
from lit_medgen.training.predicting import Predicting

TIMES = tuple(i / 10 for i in range(10))
"""At which validation and `evaluate` measure skill; 0 is the crop without noise."""


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
        self.network, self.labels = as_module(network), fitting.labels_of(outputs, network)
        fitting.refuse_cut(crop, margin, first_stage)
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
        fitting.refuse_network(self.network, shape)
        if not self.is_judge:
            fitting.refuse_pixels(shape, self.crop, self.margin, self.divisor)

    def check(self, spec: DataSpec) -> None:
        """InputError if the data does not tell the labels, or shows them at another scale than the first stage saw."""
        super().check(spec)
        fitting.refuse_labels(self.outputs, spec)
        theirs = spec if self.is_judge else self.first_stage.needed_spec()
        if spacing_ratio(spec, theirs) > MAX_SPACING_RATIO:
            raise InputError(
                f"data.init_args: pixels of {spec.spacing_mm[0]:.3g} mm, but {self.frozen_parts['first_stage'].path} "
                f"was trained with {theirs.spacing_mm[0]:.3g} mm; prepare images in the same way."
            )

    @property
    def divisor(self) -> int:
        """Pixels of an image for each pixel of its latent."""
        return self.first_stage.needed_spec().size[0] // self.first_stage.latent_shape[1]

    def facts(self) -> dict[str, Any]:
        """What its outputs are, and which noise levels it was trained on; none of a judge."""
        facts: dict[str, Any] = {"outputs": [*map(list, self.outputs.items())], "log_snr": None}
        facts |= {"margin": self.margin, "crop": self.crop}
        if not self.is_judge:
            facts["log_snr"] = self.schedule.log_snr(torch.linspace(0.1, 0.9, 9, device=self.device)).cpu()
        return facts

    def restore(self, facts: dict[str, Any]) -> None:
        """InputError if it is asked for something else."""
        for name in ("outputs", "margin", "crop"):
            if (asked := self.facts()[name]) != facts.get(name, asked):
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

    def rehearsed(self, batch: Batch) -> Batch:
        """The batch with latents of crops in place of its images; a judge reads images."""
        batch = super().rehearsed(batch)
        if self.is_judge:
            return batch
        batch = without_images(batch, self.first_stage)
        assert batch.latent is not None
        for axis, side in enumerate(self.crop_size if self.crop else (), start=2):
            batch = replace(batch, latent=batch.latent.narrow(axis, 0, side // self.divisor).clone())
        return batch

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
