r"""cDPM: brain MRIs slice set by slice set, each made from slices made before.

Peng, Adeli, Bosschieter, Park, Zhao, Pohl. "Generating Realistic Brain MRIs via a Conditional Diffusion
Probabilistic Model". MICCAI 2023.

A volume is too large to denoise at once, so a 2D network learns to denoise a target set P of its slices given a
condition set C, for arbitrary C and P with |C| + |P| <= tau_max. Noise is added to the target slices alone,

    q(X_t^P | X^P) = N(sqrt(alpha_bar_t) X^P, (1 - alpha_bar_t) I)                              (eq. 2)
    loss           = E |eps - eps_theta(X_t^P, X^C, C, P, t)|^2   over the slices of P           (eq. 6)
    p(X_0:T^P)     = p(X_T^P) prod_t p_theta(X_{t-1}^P | X_t^P, X^C)                             (eq. 5)

and a volume is made in N stages, each from the slices of earlier ones (figure 1).

Beyond the paper, and in the config: any parametrisation and sampler, averaged weights, an absolute slice position
(`lit_medgen.networks.SliceUNet` says why), an atlas (`lit_medgen.methods.cdpm.factor_model` says why). Beyond it
always: x̂ kept in [-1, 1] at every step (with an atlas, whose posterior is Gaussian, at the end alone: clipping in
between takes spread out of the samples), times continuous in [1/T, 1] rather than the T discrete ones. The authors'
port takes the loss over all slices; here it is eq. 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import reduce
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_medgen.batch import AXES, PADDING, Batch, Condition, DataSpec, sent
from lit_medgen.checkpoints import FACTS
from lit_medgen.diffusion import (
    Clipped,
    Cosine,
    Denoises,
    DPMSolverPP2M,
    LossWeight,
    ParametrisationName,
    Sampler,
    Schedule,
)
from lit_medgen.diffusion.gaussian import broadcast
from lit_medgen.errors import InputError
from lit_medgen.methods.cdpm.factor_model import Atlas, AtlasDenoiser, max_modes, without
from lit_medgen.methods.cdpm.schemes import Autoregressive, Scheme, Stage
from lit_medgen.networks.protocols import SliceNetwork, as_module
from lit_medgen.seeds import SeededNoise, mix
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import Generator, default_optimizer

MAX_ATLAS = 500
"""Training people that the atlas is made of, at most; more cost time and memory."""


class CDPM(Generator):
    """Conditional diffusion over sets of slices.

    Args:
        network: `SliceUNet`, or any module called as network(x, t, condition) (`SliceNetwork` says with what).
        schedule: noise schedule; None: `Cosine`.
        parametrisation: what the network predicts.
        weight: weight of the loss over time; None: `UniformWeight`.
        sampler: walks the denoiser in every stage; None: 20 steps of `DPMSolverPP2M`.
        scheme: which slices each stage makes, and from which; None: `Autoregressive`.
        optimizer: makes the optimizer.
        learning_rate_schedule: factor of the optimizer's rate at each step.
        atlas_modes: for a network with an atlas: the directions in which it varies as the training people do.
    """

    def __init__(
        self,
        network: SliceNetwork,
        schedule: Schedule | None = None,
        parametrisation: ParametrisationName = "eps",
        weight: LossWeight | None = None,
        sampler: Sampler | None = None,
        scheme: Scheme | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
        atlas_modes: int = 0,
    ) -> None:
        super().__init__(optimizer, learning_rate_schedule)
        self.divisor, self.needs_atlas = getattr(network, "divisor", 1), getattr(network, "atlas", False)
        if atlas_modes and not self.needs_atlas:
            raise ValueError(
                f"model.init_args.atlas_modes is {atlas_modes}, but the network takes no atlas; "
                "set network.init_args.atlas to true."
            )
        self.denoiser = AtlasDenoiser(as_module(network), schedule or Cosine(), parametrisation, weight)
        self.atlas_modes = atlas_modes
        self.atlas_without: dict[str, int] = {}
        self.sampler: Sampler = sampler or DPMSolverPP2M(20)
        self.scheme = scheme or Autoregressive()

    def networks_for_speed(self) -> list[nn.Module]:
        """The slice U-Net."""
        return [self.denoiser.network]

    def setup(self, stage: str) -> None:
        """Makes the atlas from the training people before the first step, unless a checkpoint brings it."""
        super().setup(stage)
        if stage == "fit" and self.needs_atlas:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            people = data.people("train")
            place = {person: i for i, person in enumerate(dict.fromkeys(people.values()))}
            self.atlas_without = {
                key: without(place[person]) for key, person in people.items() if place[person] < MAX_ATLAS
            }
            if not getattr(self.trainer, "resumed_from", None):
                self.denoiser.atlas = self._make_atlas(data)

    def _make_atlas(self, data: Any) -> Atlas:
        volumes = data.images("train", one_per_person=True, limit=MAX_ATLAS).all()
        most = max_modes(len(volumes))
        if self.atlas_modes > most:
            raise InputError(
                f"model.init_args.atlas_modes is {self.atlas_modes}, but there are {len(volumes)} training people; "
                + (f"give at most {most}." if most >= 0 else "an atlas needs at least two.")
            )
        axis = AXES[self.needed_spec().slice_axis] + 2
        return Atlas.of(volumes.movedim(axis, 2), self.atlas_modes)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the atlas."""
        super().on_save_checkpoint(checkpoint)
        atlas = self.denoiser.atlas
        checkpoint[FACTS]["atlas"] = None if atlas is None else vars(atlas)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the atlas back."""
        super().on_load_checkpoint(checkpoint)
        atlas = checkpoint[FACTS].get("atlas")
        if atlas is not None and "correlation" not in atlas:
            raise InputError("--ckpt_path: its atlas is of an older version, without a correlation; train again.")
        self.denoiser.atlas = None if atlas is None else Atlas(**atlas)
        resumed = self._trainer and getattr(self.trainer, "resumed_from", None)
        if atlas is not None and resumed and atlas["modes"].shape[1] != self.atlas_modes:
            raise InputError(
                f"model.init_args.atlas_modes is {self.atlas_modes}, but this run began with an atlas of "
                f"{atlas['modes'].shape[1]} modes; give that, or start a run of another --name."
            )

    def check_shape(self, shape: DataSpec) -> None:
        """InputError if the slices do not fit the network."""
        if not shape.slice_axis:
            raise InputError(
                "data.init_args.slices is not set; cDPM needs sets of slices, e.g. data_modules.UniformDraw."
            )
        plane = _plane(shape)
        if any(side % self.divisor for side in plane):
            raise InputError(
                f"data.init_args.preprocessing.size gives {shape.slice_axis} slices of {plane[0]} x {plane[1]}; "
                f"model.init_args.network.init_args.channels has {self.divisor.bit_length()} levels, so both must be "
                f"multiples of {self.divisor}."
            )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 6: the weighted squared error of the prediction, averaged over all voxels of target slices."""
        condition = replace(batch.condition, image=batch.image)
        index, observed = condition.slice_index, condition.observed
        if index is None or observed is None:
            raise InputError(
                "data.init_args.slices is not set; cDPM needs sets of slices, e.g. data_modules.UniformDraw."
            )
        t, share = self.times_and_shares(len(batch.image), self.denoiser.schedule.t_min)
        denoiser = self.denoiser.seeing(sent(torch.tensor([self.atlas_without.get(k, 0) for k in batch.key]), t.device))
        error = denoiser.weighted_error(batch.image, t, torch.randn_like(batch.image), condition)  # of eq. 2
        error = reduce(error, "b c n y x -> b n", "mean")
        target = ~observed & (index != PADDING)
        return {"loss": (broadcast(share, error) * error * target).sum() / target.sum()}

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Volumes in N stages (figure 1): b c x y z in [-1, 1].

        `condition.image` (b c x y z) with `condition.observed` (b n, the same slices for all) gives slices that
        are kept; every stage then also sees the nearest of them, as far as places last.
        """
        spec = self.needed_spec()
        axis = AXES[spec.slice_axis] + 2
        noise = SeededNoise(seeds)
        slices = torch.full((len(seeds), spec.channels, spec.size[axis - 2], *_plane(spec)), -1.0, device=self.device)
        given: list[int] = []
        if condition.image is not None and condition.observed is not None:
            observed = condition.observed.cpu()
            if (observed != observed[:1]).any():
                raise InputError("condition.observed: the given slices differ between images; sample them one by one.")
            slices = sent(condition.image, self.device).to(slices).movedim(axis, 2).clone()
            given = observed[0].nonzero().flatten().tolist()
        for stage in self._stages(slices.shape[2], given):
            slices.index_copy_(2, sent(torch.tensor(stage.target), self.device), self._make(slices, stage, noise))
        return slices.clamp(-1, 1).movedim(2, axis)

    def prior_samples(self, seeds: Sequence[int]) -> Tensor | None:
        """Samples of the atlas, b c x y z in [-1, 1]; None without one."""
        atlas = self.denoiser.atlas
        if atlas is None:
            return None
        noise = SeededNoise([mix("prior", seed) for seed in seeds])  # unlike that of the model's own samples
        return atlas.sample(noise).clamp(-1, 1).movedim(2, AXES[self.needed_spec().slice_axis] + 2)

    def _make(self, slices: Tensor, stage: Stage, noise: SeededNoise) -> Tensor:
        """The target slices of a stage, b c p y x (eq. 5)."""
        num_condition = len(stage.condition)
        both = sent(torch.tensor(stage.condition + stage.target), slices.device)
        image, index = slices.index_select(2, both), both.expand(len(slices), -1)
        observed = (torch.arange(len(both), device=slices.device) < num_condition).expand(len(slices), -1)
        condition = Condition(image=image, observed=observed, slice_index=index)
        denoiser: Denoises = _Targets(self.denoiser, num_condition)
        if not self.needs_atlas:
            denoiser = Clipped(denoiser)
        return self.sampler(denoiser, noise.like(image[:, :, num_condition:]), condition, noise.like)

    def _stages(self, num_slices: int, given: list[int]) -> list[Stage]:
        """The scheme's stages; with given slices, less those, each from the nearest of all that is known by then."""
        most = self.scheme.num_target + self.scheme.num_condition
        stages = []
        for stage in self.scheme.stages(num_slices):
            target = [i for i in stage.target if i not in given]
            if not target:
                continue
            known = stage.condition
            if given:
                both = sorted({*given, *known})
                known = sorted(both, key=lambda i: min(abs(i - j) for j in target))[: most - len(target)]
            stages.append(Stage(target, sorted(known)))
        return stages

    def seams(self) -> tuple[int, list[int]]:
        """The slice axis, and where neighbouring slices were made in different stages."""
        spec = self.needed_spec()
        axis = AXES[spec.slice_axis]
        made_in = {i: k for k, stage in enumerate(self.scheme.stages(spec.size[axis])) for i in stage.target}
        return axis, [i for i in range(spec.size[axis] - 1) if made_in[i] != made_in[i + 1]]


class _Targets:
    """The denoiser of the target slices alone; the condition slices stand first in the set and stay clean."""

    def __init__(self, denoiser: Denoises, num_condition: int) -> None:
        self.denoiser, self.num_condition, self.schedule = denoiser, num_condition, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.image is not None
        both = torch.cat([condition.image[:, :, : self.num_condition], x_t], dim=2)
        return self.denoiser(both, t, condition)[:, :, self.num_condition :]


def _plane(spec: DataSpec) -> list[int]:
    """The two sides of a slice."""
    axis = AXES[spec.slice_axis]
    return [size for place, size in enumerate(spec.size) if place != axis]
