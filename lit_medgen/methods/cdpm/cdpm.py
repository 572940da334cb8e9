r"""cDPM: brain MRIs generated slice set by slice set, each conditioned on slices generated before.

Peng, Adeli, Bosschieter, Park, Zhao, Pohl. "Generating Realistic Brain MRIs via a Conditional Diffusion
Probabilistic Model". MICCAI 2023.

A volume is too large to denoise at once, so a 2D network learns to denoise a target set P of its slices given a
condition set C, for arbitrary C and P with |C| + |P| <= tau_max. Noise is added to the target slices alone,

    q(X_t^P | X^P) = N(sqrt(alpha_bar_t) X^P, (1 - alpha_bar_t) I)                              (eq. 2)
    loss           = E |eps - eps_theta(X_t^P, X^C, C, P, t)|^2   over the slices of P           (eq. 6)
    p(X_0:T^P)     = p(X_T^P) prod_t p_theta(X_{t-1}^P | X_t^P, X^C)                             (eq. 5)

and a volume is generated in N stages, each conditioned on slices of earlier ones (figure 1, section 2.3).

Beyond the paper, and in the config: any parametrisation and sampler, averaged weights, an absolute slice position
(`lit_medgen.networks.SliceUNet` says why), and any subset of covariates with classifier-free guidance. Beyond it
always: x̂ kept in [-1, 1] at every step, times continuous in [1/T, 1] rather than the T discrete ones. The authors'
port takes the loss over all slices; here it is eq. 6.

Shapes: b volumes, c channels, x y z their axes; in sets of slices n slices, y x the plane; p target slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange, reduce
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_medgen.axes import AXES
from lit_medgen.batch import PADDING, Batch, Condition, DataSpec, Part, sent
from lit_medgen.diffusion import (
    Clipped,
    Cosine,
    Denoiser,
    Denoises,
    DPMSolverPP2M,
    LossWeight,
    ParametrisationName,
    Sampler,
    Schedule,
)
from lit_medgen.diffusion.gaussian import broadcast
from lit_medgen.diffusion.reconstruction import DETECTION_STEPS, errors_by_level, reconstructions
from lit_medgen.errors import InputError
from lit_medgen.methods.cdpm.schemes import Autoregressive, Scheme, Stage
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.networks.protocols import SliceNetwork, as_module
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.conditional import Conditional, Conditioning
from lit_medgen.training.fitting import refuse_other_channels
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer

NO_SLICES = (
    "data.init_args.view is not set, or of another kind: cDPM needs sets of slices, e.g. data_modules.UniformDraw."
)


class CDPM(Conditional):
    """Conditional diffusion over sets of slices (Peng et al. 2023).

    Args:
        network: `SliceUNet`, or any module called as network(x, t, condition), as `SliceNetwork` describes;
            its `covariates` are what volumes can be made from.
        schedule: noise schedule; None: `Cosine`.
        parametrisation: what the network predicts.
        weight: weight of the loss over time; None: `UniformWeight`.
        sampler: integrates the reverse process in every stage; None: 20 steps of `DPMSolverPP2M`.
        scheme: which slices each stage generates, and from which; None: `Autoregressive`, the paper's.
        conditioning: how covariates are learned, and guide.
        optimizer: makes the optimizer from the trained parameters.
        learning_rate_schedule: factor of the optimizer's learning rate at each step; None: constant.
    """

    optional: tuple[Part, ...] = ("image",)
    kept: tuple[str, ...] = ("image",)
    denoiser: Denoiser
    denoiser_type: type[Denoiser] = Denoiser

    def __init__(
        self,
        network: SliceNetwork,
        schedule: Schedule | None = None,
        parametrisation: ParametrisationName = "eps",
        weight: LossWeight | None = None,
        sampler: Sampler | None = None,
        scheme: Scheme | None = None,
        conditioning: Conditioning | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(getattr(network, "covariates", None), conditioning, optimizer, learning_rate_schedule)
        self.divisor = getattr(network, "divisor", 1)
        self.denoiser = self.denoiser_type(as_module(network), schedule or Cosine(), parametrisation, weight)
        self.sampler: Sampler = sampler or DPMSolverPP2M(20)
        self.sampler.check(self.denoiser.schedule)
        self.scheme = scheme or Autoregressive()

    def take_covariates(self, covariates: Covariates) -> None:
        """Takes those of its network; given slices are kept whatever these are."""
        super().take_covariates(covariates)
        self.optional = (*self.optional, "image")

    def networks_for_speed(self) -> list[nn.Module]:
        """The slice network, which `trainer.speed` may compile."""
        return [self.denoiser.network]

    def check_shape(self, shape: DataSpec) -> None:
        """InputError unless the data gives sets of slices, of a size that the network can halve at every level."""
        if not shape.slice_axis:
            raise InputError(NO_SLICES)
        plane = [side for i, side in enumerate(shape.size) if i != AXES[shape.slice_axis]]
        if any(side % self.divisor for side in plane):
            raise InputError(
                f"data.init_args.preprocessing.size gives {shape.slice_axis} slices of {plane[0]} x {plane[1]}; "
                f"model.init_args.network.init_args.channels has {self.divisor.bit_length()} levels, so both must be "
                f"multiples of {self.divisor}."
            )
        found = getattr(self.denoiser.network, "out_channels", None)
        refuse_other_channels("network.init_args.image_channels", found, shape)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted squared error of the prediction (eq. 6), averaged over all voxels of target slices."""
        condition = self.condition_of(batch, self.training_condition(batch.condition, len(batch.image)))
        t, share = self.times_and_shares(len(batch.image), self.denoiser.schedule.t_min)
        eps = torch.randn_like(batch.image)
        error = self.denoiser.weighted_error(batch.image, t, eps, condition)  # noise is added by eq. 2
        error = reduce(error, "b c n y x -> b n", "mean")
        is_target = _is_target(condition)
        return {"loss": (broadcast(share, error) * error * is_target).sum() / is_target.sum()}

    def condition_of(self, batch: Batch, covariates: Condition) -> Condition:
        """The condition X^C, C, P of a batch: its given slices, and zeros for those that are to be predicted.

        Args:
            batch: sets of slices.
            covariates: what volumes are made from, as `scaled` gives them.
        """
        observed, slice_index = batch.condition.observed, batch.condition.slice_index
        if observed is None or slice_index is None:
            raise InputError(NO_SLICES)
        image = _given(batch.image, observed)
        return replace(covariates, image=image, observed=observed, slice_index=slice_index)

    def prediction(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        """What the network predicts of target slices, b c n y x, zero elsewhere, and its mean error in each set, b."""
        condition = self.condition_of(batch, condition)
        t, _ = self.times_and_shares(len(batch.image), self.denoiser.schedule.t_min)
        x_t = self.denoiser.process.perturb(batch.image, t, torch.randn_like(batch.image))
        predicted = self.denoiser.predict(x_t, t, condition).float()
        error = self.denoiser.error(predicted, self.denoiser.target(batch.image, x_t, t))
        is_target = _is_target(condition)
        in_each = reduce(error, "b c n y x -> b n", "mean") * is_target
        predicted = predicted.masked_fill(~rearrange(is_target, "b n -> b 1 n 1 1"), 0)
        return predicted, in_each.sum(1) / is_target.sum(1).clamp(min=1)

    def measured(self, batch: Batch) -> tuple[Batch, Condition]:
        """What the condition alarm predicts for; of whole volumes the first stage, which is made from nothing else."""
        covariates = self.scaled(batch.condition)
        if batch.condition.slice_index is None:
            axis = AXES[self.needed_spec().slice_axis] + 2
            slices = batch.image.movedim(axis, 2)
            target = sent(torch.tensor(self.scheme.stages(slices.shape[2])[0].target), slices.device)
            index = target.expand(len(slices), -1)
            condition = Condition(observed=torch.zeros_like(index).bool(), slice_index=index)
            batch = replace(batch, image=slices.index_select(2, target), condition=condition)
        return batch, covariates

    def why_no_surprise(self) -> str:
        """Nothing: volumes are made from noise alone where no slices are given."""
        return ""

    @torch.no_grad()
    def surprise(self, images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The mean squared error of each volume's reconstructions from several noise levels, by log-SNR, b each.

        Of the slices of the first stage, which are made from nothing else, in at most `DETECTION_STEPS` steps.
        """
        volumes = Batch(sent(images, self.device), [""] * len(images), torch.eye(4).expand(len(images), 4, 4))
        batch, covariates = self.measured(volumes)
        condition, noise = self.condition_of(batch, covariates), SeededNoise(seeds)
        with self.in_few_steps(DETECTION_STEPS):
            made = reconstructions(self.sampler, self.bounded(self.denoiser), batch.image, condition, noise.like)
            return errors_by_level((x_0 - batch.image).square() for x_0 in made)

    @property
    def swapped_groups(self) -> dict[str, tuple[str, ...]]:
        """What the condition alarm swaps: covariates; given slices belong to their image."""
        return {name: names for name, names in super().swapped_groups.items() if names != self.kept}

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Generates volumes in N stages (figure 1).

        Args:
            condition: may hold covariates, and given slices, which are kept: `image` (b c x y z) and `observed` (b n).
                Every stage is then also conditioned on the given slices nearest to its own.
            seeds: one for each volume.

        Returns:
            b c x y z in [-1, 1].

        Raises:
            InputError: the given slices are of another size than those of the data, or the model was never trained.
        """
        spec = self.needed_spec()
        axis, covariates = AXES[spec.slice_axis] + 2, self.scaled(condition).to(self.device)
        if condition.image is None or condition.observed is None:
            empty = torch.zeros(len(seeds), spec.channels, *spec.size, device=self.device)
            return self._sample(empty.movedim(axis, 2), [], covariates, seeds).clamp(-1, 1).movedim(2, axis)
        for part, expected in (("image", (spec.channels, *spec.size)), ("observed", (spec.size[axis - 2],))):
            if (found := tuple(getattr(condition, part).shape[1:])) != expected:
                raise InputError(f"condition.{part} has the shape {found}; this model expects {expected}.")
        image, observed = sent(condition.image.float(), self.device), sent(condition.observed, self.device)
        slices = _given(image.movedim(axis, 2), observed)
        patterns, rows_of = condition.observed.cpu().unique(dim=0, return_inverse=True)
        for k, pattern in enumerate(patterns):  # volumes with the same given slices take the same stages
            rows = (rows_of == k).nonzero().flatten().tolist()
            given = pattern.nonzero().flatten().tolist()
            slices[rows] = self._sample(slices[rows], given, covariates.of_rows(rows), [seeds[row] for row in rows])
        return slices.clamp(-1, 1).movedim(2, axis)

    def _sample(self, slices: Tensor, given: list[int], covariates: Condition, seeds: Sequence[int]) -> Tensor:
        """Volumes as slices, b c n y x, all generated but the given ones, from covariates as `scaled` gives them."""
        noise = SeededNoise(seeds)
        for stage in self._stages(slices.shape[2], given):
            target = sent(torch.tensor(stage.target), self.device)
            slices.index_copy_(2, target, self._sample_stage(slices, stage, covariates, noise))
        return slices

    def _sample_stage(self, slices: Tensor, stage: Stage, covariates: Condition, noise: SeededNoise) -> Tensor:
        """The target slices of a stage, b c p y x (eq. 5), from those generated so far, b c n y x."""
        num_condition = len(stage.condition)
        index = sent(torch.tensor(stage.condition + stage.target), slices.device)
        image = slices.index_select(2, index)
        observed = (torch.arange(len(index), device=slices.device) < num_condition).expand(len(slices), -1)
        condition = replace(covariates, image=image, observed=observed, slice_index=index.expand(len(slices), -1))
        denoiser = self.bounded(self.classifier_free(_Targets(self.denoiser, num_condition)))
        return self.sampler(denoiser, noise.like(image[:, :, num_condition:]), condition, noise.like)

    def bounded(self, denoiser: Denoises) -> Denoises:
        """The denoiser that the sampler calls: clipped to the range of images."""
        return Clipped(denoiser)

    def _stages(self, num_slices: int, given: list[int]) -> list[Stage]:
        """The scheme's stages without the given slices, each conditioned on the nearest of all slices known by then."""
        max_slices = self.scheme.num_target + self.scheme.num_condition
        stages = []
        for stage in self.scheme.stages(num_slices):
            target = [i for i in stage.target if i not in given]
            if not target:
                continue
            known = stage.condition
            if given:
                nearest_first = sorted(sorted({*given, *known}), key=lambda i: min(abs(i - j) for j in target))
                known = nearest_first[: max_slices - len(target)]
            stages.append(Stage(target, sorted(known)))
        return stages

    def seams(self) -> tuple[int, list[int]]:
        """The spatial axis of the slices, and every i for which slices i and i + 1 come from different stages."""
        spec = self.needed_spec()
        axis = AXES[spec.slice_axis]
        stage_of = {i: k for k, stage in enumerate(self.scheme.stages(spec.size[axis])) for i in stage.target}
        return axis, [i for i in range(spec.size[axis] - 1) if stage_of[i] != stage_of[i + 1]]


class _Targets:
    """A denoiser of the target slices alone; the condition slices stand first in the set and stay clean."""

    def __init__(self, denoiser: Denoises, num_condition: int) -> None:
        self.denoiser, self.num_condition, self.schedule = denoiser, num_condition, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.image is not None
        slices = torch.cat([condition.image[:, :, : self.num_condition], x_t], dim=2)
        return self.denoiser(slices, t, condition)[:, :, self.num_condition :]


def _is_target(condition: Condition) -> Tensor:
    """Which slices of sets are to be predicted: those that are neither given nor padding; b n, bool."""
    assert condition.slice_index is not None
    assert condition.observed is not None
    return ~condition.observed & (condition.slice_index != PADDING)


def _given(slices: Tensor, observed: Tensor) -> Tensor:
    """b c n y x: the given slices (observed: b n), and zeros for all others."""
    return slices.masked_fill(~rearrange(observed, "b n -> b 1 n 1 1"), 0)
