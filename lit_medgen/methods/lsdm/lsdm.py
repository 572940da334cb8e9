r"""LSDM: images made in latents from a label map, with a classifier that shapes the nodule in it.

Zu, "Fast and Precise Lung CT Image Generation via Diffusion Models" (MSc thesis, University of Twente, 2023), chapter
3; where the text and its public code differ, configs/lsdm.yaml has both values.

    z        = (E(x) - shift) / scale                                            the normalised latent (algorithm 1)
    loss     = E |eps - eps_theta(z_t, t, m)|^2,    m: the label map, by SPADE in every residual block (section 3.3),
               or E(m) joined to z_t (eq. 3.3), or both
    g        = M grad log p(y | Crop(D(z_t)), t),   M: the dilated nodule                     (eq. 3.7 and 3.8)
    sample     x̂ <- x̂ + s sigma_t^2 / alpha_t g,   which adds s Sigma g to the mean           (eq. 3.5)

What differs from the thesis:

- Equation 3.6 and algorithm 2 print the guidance as s sigma_t log p: a gradient is missing, and Sigma is sigma^2. Here
  it is equation 3.5, for any sampler: what shifts the mean of a step by s Sigma g shifts x̂ by s sigma_t^2 / alpha_t g.
- The mask of equation 3.8 is 1 outside the nodule; here it is 1 inside.
- Attributes that are asked for share the decoding and the network where one classifier tells them. The malignancy
  follows upon the others, as in section 3.4.1: its gradient is taken where they have moved the latent to.
- A crop is cut out of the latent around the largest nodule of the map, once. Beyond the border it holds the latent of
  background without noise; the public code takes another nodule instead.
- The scale of the latents is measured, weights are averaged, and times are spread evenly, as in `LDM`.

Shapes: b images, c channels, *s their axes; d latent channels, *z the axes of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lit_medgen.batch import ABSENT_CLASS, Condition, DataSpec, Score, TrainingData, sent
from lit_medgen.diffusion import Denoises, LikelihoodGuidance
from lit_medgen.errors import InputError
from lit_medgen.images.nodules import coarse, dilated, inside_nodules, nodule_classes
from lit_medgen.methods.crop_classifier import CropClassifier
from lit_medgen.methods.ldm import LDM
from lit_medgen.methods.lsdm.guidance_effect import GuidanceEffect
from lit_medgen.methods.lsdm.nodule_guidance import LAST, GuidedNodules, Wish
from lit_medgen.networks.protocols import LatentNetwork
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.frozen import FrozenPart
from lit_medgen.training.gaussian_diffusion import SourceDenoiser
from lit_medgen.training.generator import refuse_other_classes
from lit_medgen.training.latent_crops import LatentCrops


class LSDM(LDM):
    """Latent semantic diffusion (Zu 2023).

    Args:
        network: `SemanticUNet`, which reads the label map by itself, or any other `LatentNetwork` with `concatenate`.
        first_stage: checkpoint of an `AutoencoderKL`, a `VQGAN` or another `FirstStage`.
        concatenate: whether the label map, as a grey image, passes the first stage's encoder and is joined to the
            network's input, which then has twice the latent's channels.
        classifier: checkpoint of a `CropClassifier` of the same first stage and schedule, which guides sampling; it may
            be given to `sample` and `evaluate` alone. None: no guidance.
        guidance: attribute that the classifier tells -> how it guides; None: all of them alike, `malignant` last.
        classifier_scale: factor of the gradients of all; 0: no guidance.
        dilation: side, in pixels, of the square by which the nodule of the label map is grown, an odd number; only the
            latent inside is guided.
        others: as of `LDM`.
    """

    required = ("label_map",)
    kept = ("label_map", "source")
    denoiser_type = SourceDenoiser  # the encoded map is the source (eq. 3.3)

    def __init__(
        self,
        network: LatentNetwork,
        first_stage: str,
        concatenate: bool = False,
        classifier: str | None = None,
        guidance: dict[str, Wish] | None = None,
        classifier_scale: float = 1.0,
        dilation: int = 9,
        **others: Any,
    ) -> None:
        super().__init__(network, first_stage, **others)
        run = "python -m lit_medgen fit --config configs"
        self.frozen_parts = {"first_stage": FrozenPart(Path(first_stage), FirstStage, f"{run}/autoencoder_kl_ct.yaml")}
        if classifier:
            self.frozen_parts["classifier"] = FrozenPart(
                Path(classifier),
                CropClassifier,
                f"{run}/crop_classifier.yaml",
                trained_on=("first_stage",),
                same_facts=("channels", "intensity_window"),
                same_noise=True,
                late=True,
            )
        self.concatenate, self.guidance, self.classifier_scale = concatenate, guidance, classifier_scale
        self.dilation = dilation
        self.wishes: dict[str, Wish] = {}
        self._effect_of_guide: GuidanceEffect | None = None
        if not (concatenate or hasattr(network, "num_classes")):
            raise ValueError(
                f"model.init_args.network: {type(network).__name__} reads no label map; give "
                "lit_medgen.networks.SemanticUNet, or set model.init_args.concatenate to true."
            )
        if guidance and not classifier:
            raise ValueError(
                f"model.init_args.guidance: {', '.join(guidance)} need a classifier; give the checkpoint of one as "
                "model.init_args.classifier."
            )
        if dilation < 1 or dilation % 2 == 0:
            raise ValueError(f"model.init_args.dilation is {dilation}; give an odd number of pixels, 1 for none.")

    # What must fit together.

    def check_shape(self, shape: DataSpec) -> None:
        """InputError too for a network of another number of classes than the data's."""
        super().check_shape(shape)
        if "classifier" in self.frozen_parts and not nodule_classes(shape.classes):
            raise InputError(
                f"data.init_args: no class of the label maps ({'; '.join(shape.classes)}) is a nodule, which the "
                "classifier guides; leave out model.init_args.classifier, or give maps with such classes."
            )
        refuse_other_classes(getattr(self.denoiser.network, "num_classes", len(shape.classes)), shape)

    def joined_channels(self, latent_channels: int) -> int:
        """Channels of the encoded label map, if that is joined to the latent."""
        return latent_channels if self.concatenate else 0

    def build(self) -> None:
        """Takes from the classifier, where there is one, what images can be asked to show."""
        super().build()
        if (guide := self.guide) is None:
            return
        self._refuse_unfit(guide)
        self.wishes = dict(self.guidance or {name: LAST.get(name, Wish()) for name in guide.outputs})
        self.nodule_attributes = frozenset(self.wishes).difference(self.attributes)  # its network knows the others
        self.attributes = tuple(dict.fromkeys([*self.attributes, *self.wishes]))
        binary = {name: 2 for name in self.wishes if guide.outputs[name] == "binary"}
        self.categories = {**self.categories, **binary}
        self.optional = tuple(dict.fromkeys(("attributes", *self.optional)))

    def _refuse_unfit(self, guide: CropClassifier) -> None:
        """InputError for a classifier that cannot guide this model."""
        path = self.frozen_parts["classifier"].path
        key = f"model.init_args.classifier: {path}"
        if unknown := [name for name in self.guidance or () if name not in guide.outputs]:
            raise InputError(
                f"model.init_args.guidance.{unknown[0]}: {path} tells {', '.join(guide.outputs)}; give one of these."
            )
        axes = len(self.first_stage.latent_shape) - 1
        if len(guide.crop_size) != axes:
            raise InputError(f"{key} sees crops of {len(guide.crop_size)} axes, but images have {axes}.")
        if self.latent_scale != "global":
            raise InputError(
                f"model.init_args.latent_scale is {self.latent_scale}; a model that is guided by a classifier needs "
                "global, or leave out model.init_args.classifier."
            )

    @property
    def guide(self) -> CropClassifier | None:
        """The classifier that guides sampling, once it is there."""
        return cast(CropClassifier | None, self._modules.get("classifier"))

    # The label map.

    def scaled(self, condition: Condition) -> Condition:
        """What the network reads: the label map, with `concatenate` also encoded (as `source`), and covariates."""
        condition = super().scaled(condition)
        if condition.label_map is None:
            raise InputError("LSDM makes images from label maps: condition.label_map is missing.")
        return replace(condition, source=self.encoded(condition.label_map)) if self.concatenate else condition

    @torch.no_grad()
    def encoded(self, label_map: Tensor) -> Tensor:
        """E(m), b d *z, normalised as latents are: of the classes as grey values from -1 to 1; zeros of absent maps."""
        spec = self.first_stage.needed_spec()
        grey = 2 * label_map.clamp(min=0) / max(1, len(self.needed_spec().classes) - 1) - 1
        with torch.autocast(self.device.type, enabled=False):
            z = self.scale.normalise(self.first_stage.encode(grey.expand(-1, spec.channels, *grey.shape[2:])))
        absent = (label_map == ABSENT_CLASS).flatten(1).all(1)
        return z.masked_fill(absent.view(-1, *[1] * (z.ndim - 1)), 0)

    # Guidance.

    def denoiser_for(self, condition: Condition) -> Denoises:
        """The denoiser, guided to the attributes that the classifier tells and the condition gives (eq. 3.8)."""
        denoiser, label_map = super().denoiser_for(condition), condition.label_map
        names = self.wishes.keys() & condition.attributes.keys()
        if label_map is None or not names or self.classifier_scale == 0:
            return denoiser
        with torch.inference_mode(False), torch.no_grad():  # what is made in inference mode can be in no gradient
            groups = self.nodules_of(label_map).groups(self.wishes, condition.attributes, self.classifier_scale)
        return LikelihoodGuidance(denoiser, groups) if groups else denoiser

    @property
    def guidance_scales(self) -> dict[str, float]:
        """That of the classifier too, where there is one."""
        return super().guidance_scales | ({"classifier_scale": self.classifier_scale} if self.guide else {})

    @contextmanager
    def guided_by(self, scales: Mapping[str, float]) -> Iterator[None]:
        """Samples within take these scales too."""
        before = self.classifier_scale
        with super().guided_by(scales):
            try:
                self.classifier_scale = scales.get("classifier_scale", before)
                yield
            finally:
                self.classifier_scale = before

    def nodules_of(self, label_map: Tensor) -> GuidedNodules:
        """What the classifier sees of the nodules of label maps, b 1 *s; a map on a device is waited for, once."""
        guide = cast(CropClassifier, self.guide)
        classes = nodule_classes(self.needed_spec().classes)
        size = [side // guide.divisor for side in guide.crop_size]
        crops = LatentCrops.around_nodules(label_map, classes, guide.divisor, size, self.device)
        mask = coarse(dilated(inside_nodules(sent(label_map, self.device), classes), self.dilation), guide.divisor)
        return GuidedNodules(guide, self.denoiser.schedule, self.scale, crops, mask, self._background(guide))

    @torch.no_grad()
    def _background(self, guide: CropClassifier) -> Tensor:
        """The normalised latent of background, d: of an image of nothing else, far from its border."""
        spec = self.first_stage.needed_spec()
        image = torch.full((1, spec.channels, *guide.crop_size), -1.0, device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            z = self.scale.normalise(self.first_stage.encode(image))
        for side in z.shape[2:]:
            z = z.select(2, side // 2)
        return z[0]

    @torch.no_grad()
    def scores(self, data: TrainingData) -> dict[str, Score]:
        """How far guidance changes images of test people inside their nodules and beyond, too."""
        self._effect_of_guide = GuidanceEffect.of(self, data) if self.guide else None
        found = self._effect_of_guide.scores() if self._effect_of_guide else {}
        return super().scores(data) | found

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """Pairs of guided images, and the classifier's derivatives, of the last `scores`."""
        return super().plots() | (self._effect_of_guide.plots() if self._effect_of_guide else {})
