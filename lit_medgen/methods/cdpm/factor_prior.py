r"""cDPM with a factor prior, for trainings too short to learn average anatomy. Not the paper's.

At high noise the best denoiser of any data is nearly that of a Gaussian with the same mean and covariance (Wang &
Vastola 2024, "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models"), and a network
is slow to learn it: the shape of a head is spread over thousands of voxels that each say almost nothing. What the
network does not learn there it replaces by the mean, so its samples are too alike. A Gaussian factor model
(`lit_medgen.methods.cdpm.factor_model`) has that denoiser in closed form. It observes given slices as they are, noisy
ones as x_t / alpha_t = x + N(0, sigma_t^2 / alpha_t^2). The network corrects its mean, by standard deviations:

    x̂ = E[x | y] + deviation * network(standardised residual, t, condition with the image E[mean + W z | y])

What goes into the network and what comes out have variance 1 at every noise level (the preconditioning of Karras et al.
2022, section 5, voxel by voxel). An untrained network gives 0, so an untrained copy samples the factor model.

The factor model is fitted to the training people before the first step and kept in the checkpoint. It is cross-fitted:
each person is trained on with the fit that their fold was left out of, lest the network learn a trust in the model that
new people do not deserve.

Covariates are the network's alone: the prior is that of all training people.

Shapes: b volumes, c channels, n slices, y x the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from lit_medgen.axes import AXES
from lit_medgen.batch import Batch, Condition, sent
from lit_medgen.diffusion import Denoiser, Denoises, Schedule
from lit_medgen.errors import InputError
from lit_medgen.methods.cdpm.cdpm import CDPM
from lit_medgen.methods.cdpm.factor_model import FactorModel, fit_without, max_factors
from lit_medgen.networks.protocols import SliceNetwork
from lit_medgen.seeds import SeededNoise, mix

MAX_PEOPLE = 500
"""Training people that the factor model is fitted to, at most; more cost time and memory."""


@dataclass(frozen=True)
class CrossFitted(Condition):
    """The condition of training images.

    Attributes:
        fit: b, the fit of the factor model to use for each; None: that of all people.
    """

    fit: Tensor | None = None


class FactorPriorDenoiser(Denoiser):
    """A denoiser of sets of slices whose network corrects the posterior of a factor model."""

    factor_model: FactorModel | None = None

    def __init__(self, network: nn.Module, schedule: Schedule, *others: Any) -> None:
        if schedule.ends_in_noise:  # before what is said of such schedules to all: no other setting would do here
            raise ValueError(
                f"model.init_args.schedule: {type(schedule).__name__} ends in pure noise (alpha(1) = 0), and the "
                "factor prior reads x_t / alpha_t; give Cosine, LinearBeta or ScaledLinearBeta."
            )
        super().__init__(network, schedule, *others)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """b c n y x: x̂ in the parametrisation of the loss; the condition gives image, observed and slice_index."""
        if self.factor_model is None:
            raise InputError(
                "FactorPriorCDPM: no factor model was fitted; `fit` fits it to the training people, and checkpoints "
                "keep it. Fit the method, or load it from a checkpoint."
            )
        assert condition.image is not None
        assert condition.observed is not None
        assert condition.slice_index is not None
        self.factor_model = self.factor_model.to(x_t.device)
        alpha_t, sigma_t = self.process.coefficients(t, x_t)
        given = rearrange(condition.observed, "b n -> b 1 n 1 1")
        posterior = self.factor_model.posterior(
            torch.where(given, condition.image, x_t / alpha_t),
            ((sigma_t / alpha_t) ** 2).flatten(1) * ~condition.observed,
            condition.slice_index,
            condition.fit if isinstance(condition, CrossFitted) else None,
        )
        expected = replace(condition, image=torch.where(given, condition.image, posterior.factor_mean))
        correction = super().predict(posterior.standardised_residual, t, expected)
        return self.target(posterior.x + posterior.deviation * correction, x_t, t)


class FactorPriorCDPM(CDPM):
    """cDPM whose network corrects the posterior of a Gaussian factor model of the training people.

    Its other arguments are those of `CDPM`; `parametrisation` says what the loss compares: the network itself always
    corrects the prior.

    Args:
        network: `FactorPriorSliceUNet`, or a module with `reads_prior = True`, as `SliceNetwork` describes.
        num_factors: directions in which the factor model varies; at most three quarters of the number of training
            people, less one. 0: it has a mean and residuals alone.
    """

    denoiser: FactorPriorDenoiser
    denoiser_type = FactorPriorDenoiser

    def __init__(self, network: SliceNetwork, num_factors: int = 0, **others: Any) -> None:
        super().__init__(network, **others)
        if not getattr(network, "reads_prior", False):
            raise ValueError(
                f"model.init_args.network: {type(network).__name__} does not read the factor prior; give "
                "lit_medgen.networks.FactorPriorSliceUNet, or take lit_medgen.methods.CDPM as the model."
            )
        if num_factors < 0:
            raise ValueError(f"model.init_args.num_factors is {num_factors}; give 0 or more.")
        self.num_factors = num_factors
        self.fits: dict[str, int] = {}

    def setup(self, stage: str) -> None:
        """Fits the factor model to the training people before the first step, unless a checkpoint brings it."""
        super().setup(stage)
        if stage == "fit":
            people = self.data.people("train")
            numbers = {person: i for i, person in enumerate(dict.fromkeys(people.values()))}
            self.fits = {
                key: fit_without(numbers[person]) for key, person in people.items() if numbers[person] < MAX_PEOPLE
            }
            if self.resumed_from is None:
                self.denoiser.factor_model = self._fit()

    def _fit(self) -> FactorModel:
        images = self.data.images("train", one_per_person=True, limit=MAX_PEOPLE)
        limit = max_factors(len(images))
        if self.num_factors > limit:
            raise InputError(
                f"model.init_args.num_factors is {self.num_factors}, but there are {len(images)} training people; "
                + (f"give at most {limit}." if limit >= 0 else "a factor model needs at least two.")
            )
        axis = AXES[self.needed_spec().slice_axis] + 2
        return FactorModel.fit(images.all().movedim(axis, 2), self.num_factors)

    def rehearsed(self, batch: Batch) -> Batch:
        """Takes a factor model of the right shape that was fitted to nobody."""
        spec = self.needed_spec()
        axis = AXES[spec.slice_axis]
        planes = [side for i, side in enumerate(spec.size) if i != axis]
        self.denoiser.factor_model = FactorModel.blank(self.num_factors, (spec.channels, spec.size[axis], *planes))
        return super().rehearsed(batch)

    def facts(self) -> dict[str, Any]:
        """The factor model, for the checkpoint."""
        model = self.denoiser.factor_model
        return {"factor_model": None if model is None else vars(model.to(torch.device("cpu")))}

    def restore(self, facts: dict[str, Any]) -> None:
        """Takes the factor model back; InputError if a run cannot go on with it.

        That is if it asks for another number of factors, or if people of whom the model was made have left since.
        """
        if facts["factor_model"] is None:
            return
        if self.resumed_from and self.has_data and self.needed_spec().people != self.data.spec.people:
            raise InputError(
                f"{self.resumed_from}: its factor model was made of training people of whom some are left out now; "
                "start a run of another --name."
            )
        model = self.denoiser.factor_model = FactorModel(**facts["factor_model"])
        if self.resumed_from and model.num_factors != self.num_factors:
            raise InputError(
                f"model.init_args.num_factors is {self.num_factors}, but this run began with {model.num_factors}; "
                "give that, or start a run of another --name."
            )

    def condition_of(self, batch: Batch, covariates: Condition) -> Condition:
        """The condition of a batch, with the fit that each person's fold was left out of."""
        fit = torch.tensor([self.fits.get(key, 0) for key in batch.key])
        return CrossFitted(**vars(super().condition_of(batch, covariates)), fit=sent(fit, batch.image.device))

    def bounded(self, denoiser: Denoises) -> Denoises:
        """The denoiser itself: clipping x̂ between steps would take variance out of a Gaussian."""
        return denoiser

    def prior_samples(self, seeds: Sequence[int]) -> Tensor | None:
        """Samples of the factor model, b c x y z in [-1, 1]; None before it is fitted."""
        model = self.denoiser.factor_model
        if model is None:
            return None
        noise = SeededNoise([mix("prior", seed) for seed in seeds])  # other noise than that of the method's samples
        return model.sample(noise).clamp(-1, 1).movedim(2, AXES[self.needed_spec().slice_axis] + 2)
