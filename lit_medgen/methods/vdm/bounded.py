"""What is measured of a variational diffusion model, and noted in training: the terms of its bound on unseen people."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, Score, TrainingData, sent
from lit_medgen.diffusion import Denoiser, GammaSchedule, Likelihood, NoiseLike
from lit_medgen.diffusion.gaussian import broadcast
from lit_medgen.diffusion.noise_levels import dense_near_data
from lit_medgen.methods.vdm.bound_record import TERMS, BoundRecord, scores_of
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.conditional import Conditional

AT_ONCE = 16
"""Test images whose bounds are looked at together."""
NUM_SHOWN = 8
"""Images of a trajectory, and times of the picture of an image on its way to noise."""


class Bounded(Conditional):
    """A diffusion model whose loss is a bound, in pixels or in latents; `VDM` is one."""

    schedule: GammaSchedule
    denoiser: Denoiser
    likelihood: Likelihood
    autoencoder: nn.Module | None
    bound_steps: int | None
    times_each: int
    """Times and noises that the bound of each test image is a mean over."""
    noted: BoundRecord

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """z of images, b c *s -> b d *z."""

    @abstractmethod
    def located(self, z: Tensor) -> Tensor:
        """Where p(x | z_0) lies, b c *s, from z_0 / alpha_0, b d *z."""

    @abstractmethod
    def bound(
        self,
        images: Tensor,
        condition: Condition,
        t: Tensor,
        share: Tensor,
        noise_like: NoiseLike = torch.randn_like,
    ) -> dict[str, Tensor]:
        """The terms of each image's bound at one time each, by name, in bits per dimension, b.

        `noise_like` supplies its noise.
        """

    @torch.no_grad()
    def surprise(self, images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The bound of images whose conditions are unknown, in bits per dimension, b, at `times_each` times of each."""
        noise, condition = SeededNoise(seeds), self.scaled(Condition())
        offset, total = noise.uniform((), like=images), torch.zeros(len(images), device=images.device)
        for repeat in range(self.times_each):
            t, share = dense_near_data((repeat + offset) / self.times_each, 0.0)
            terms = self.bound(images, condition, t, share, noise.like)
            total = total + torch.stack([terms[name] for name in TERMS]).sum(0)
        return {"bits_per_dimension": total / self.times_each}

    def scores(self, data: TrainingData) -> dict[str, Score]:
        """Bits per dimension of test images too, and the terms that they are the sum of."""
        with self.as_in_evaluation():
            terms, people = self.bound_of_test(data)
        time = "continuous time" if self.bound_steps is None else f"{self.bound_steps} steps"
        return super().scores(data) | scores_of(terms, people, time, self.likelihood.is_discrete)

    def bound_of_test(self, data: TrainingData, conditional: bool = True) -> tuple[dict[str, Tensor], list[str]]:
        """The terms of each test image's bound, n, by name, in bits per dimension, and whose images they are.

        Float64 on the CPU. In evaluation (`as_in_evaluation`) two models see each image at the same times and noises.

        Args:
            data: whose test images they are.
            conditional: whether the network is told their conditions; else the bound is of log p(x) without them.
        """
        requests, everybody = data.requests("test"), data.people("test")
        found: list[Tensor] = []
        people: list[str] = []
        for start in range(0, len(requests), AT_ONCE):
            request = requests.joined(range(start, min(start + AT_ONCE, len(requests)))).to(self.device)
            assert request.target is not None
            images, condition = (
                sent(request.target, self.device),
                self.scaled(request.condition if conditional else Condition()),
            )
            if start == 0:
                self.look_at(images[:1])
            parts = []
            for repeat in range(self.times_each):
                self._seed("test", start * self.times_each + repeat)
                with self.evaluating("test", start, repeat, self.times_each):
                    terms = self.bound(images, condition, *self.times_and_shares(len(images), 0.0))
                parts.append(torch.stack([terms[name] for name in TERMS]))
            found.append(torch.stack(parts).mean(0))
            people += [everybody.get(key, "") for key in request.key]
        return dict(zip(TERMS, torch.cat(found, dim=1).double().cpu(), strict=True)), people

    # What is noted of it.

    def on_validation_epoch_start(self) -> None:
        """Forgets what a validation that was left has summed up."""
        super().on_validation_epoch_start()
        self.noted.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The bound of a batch; of the first, an image on its way to noise too."""
        super().validation_step(batch, batch_idx)
        if batch_idx == 0:
            self.look_at(batch.image[:1])

    def _log_losses(self, stage: str, losses: dict[str, Tensor], batch: Batch, on_step: bool) -> None:
        super()._log_losses(stage, losses, batch, on_step)
        if stage == "val":
            self.noted.add(losses, len(batch.key))

    def on_validation_epoch_end(self) -> None:
        """Notes the terms of the bound."""
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self.noted.close(self.trainer.global_step, self.trainer.world_size)

    @torch.no_grad()
    def look_at(self, image: Tensor) -> None:
        """Keeps the schedule as it is now, and an image, 1 c *s, at growing times beside what the network expects."""
        condition, t = self.scaled(Condition()), torch.linspace(0, 1, NUM_SHOWN, device=self.device)
        z = self.encode(image).float()
        z_t = self.denoiser.process.perturb(z.expand(NUM_SHOWN, *z.shape[1:]), t, torch.randn_like(z))
        expected = torch.cat([self.denoiser(z_t[i : i + 1], t[i : i + 1], condition) for i in range(NUM_SHOWN)])
        seen = z_t if self.autoencoder is None else z_t / broadcast(self.schedule.alpha(t), z_t)
        name = "z_t" if self.autoencoder is None else "z_t / alpha_t, decoded"
        self.noted.noising = {
            f"{name}, a patient's image on its way to noise (as private as the scan)": self.likelihood.image(
                self.located(seen)
            ).float(),
            "the image that the network expects, given z_t alone": self.likelihood.image(
                self.located(expected)
            ).float(),
        }
        self.noted.gamma = -self.schedule.log_snr(torch.linspace(0, 1, 201, device=self.device))

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """The bound against steps, the schedule beside a line, and an image on its way to noise."""
        spec = self.needed_spec()
        times = [k / (NUM_SHOWN - 1) for k in range(NUM_SHOWN)]
        return self.noted.plots(spec.channels * math.prod(spec.size), times, spec.is_colour)
