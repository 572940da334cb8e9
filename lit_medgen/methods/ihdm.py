r"""Discrete VQ-IHDM: code maps from blurred ones, in a single step.

"Discrete VQ-IHDM: MRI Generation with Vector Quantized Inverse Heat Dissipation Model" (anonymous, under review), after
Rissanen, Heinonen, Solin, "Generative Modelling with Inverse Heat Dissipation" (ICLR 2023).

    z_T      = blur(e(z_0), T) + sigma noise
    loss     = - sum_i log p([z_0]_i | z_T)                                         (section 3.3)
    sampling   x ~ p(z_T), a blurred training map;  x <- x + sigma noise;  z_0 ~ p(z_0 | x, T)      (algorithm 1)

Beyond the paper, and in the config: K steps, for which the network learns every level, p(z_0 | z_t), and the mean of
its prediction is blurred again for the next level (as in IHDM, which the paper builds on); a bank of many priors, not
one; covariates (its future work) with classifier-free guidance; blur of embedded codes rather than of indices, whose
order means nothing; codes scaled to unit variance, so that sigma means what it does in IHDM.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.batch import Batch, sent
from lit_medgen.diffusion.discrete import HeatProcess
from lit_medgen.diffusion.heat import BlurSchedule
from lit_medgen.errors import InputError
from lit_medgen.methods.code_maps import CodeDiffusion
from lit_medgen.output import say
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.latent_scale import moments


class IHDM(CodeDiffusion):
    """Inverse heat dissipation on code maps.

    Its other arguments are those of `CodeDiffusion` and `CodeMaps`.

    Args:
        first_stage: checkpoint of the VQGAN.
        schedule: of the blur; None: the paper's.
        space: what is blurred: the embedded codes or their indices.
        sigma: standard deviation of the noise on a blurred map, whose embedded codes have unit variance; in index
            space, in indices.
        delta: standard deviation of the noise added between steps.
        num_priors: number of blurred training maps that samples start from; 1 in the paper. `sample` can use fewer than
            `fit` stored.
        num_steps: number of sampling steps; 1 in the paper, for which only level T is learned.
        guess: what is blurred again between steps: the mean of the embedded codes ("mean"), or codes sampled
            independently at every position ("draw"), whose noise the blur between neighbouring levels does not hide.
    """

    process: HeatProcess
    scale: Tensor

    def __init__(
        self,
        first_stage: str,
        schedule: BlurSchedule | None = None,
        space: Literal["embedding", "index"] = "embedding",
        sigma: float = 0.01,
        delta: float = 0.0125,
        num_priors: int = 1,
        num_steps: int = 1,
        guess: Literal["mean", "draw"] = "mean",
        **others: Any,
    ) -> None:
        super().__init__(first_stage, num_steps, **others)
        if num_priors < 1:
            raise ValueError(f"model.init_args.num_priors is {num_priors}; give at least 1.")
        self.schedule, self.space = schedule or BlurSchedule(), space
        if num_steps > self.schedule.num_levels:
            raise ValueError(
                f"model.init_args.num_steps is {num_steps}, but the schedule has {self.schedule.num_levels} levels."
            )
        self.sigma, self.delta, self.num_priors, self.guess = sigma, delta, num_priors, guess
        self.reads_embeddings = space == "embedding"
        self.prior: Tensor | None = None
        self.register_buffer("scale", torch.ones(()))

    def make_process(self, num_codes: int) -> HeatProcess:
        """Heat dissipation of the scaled embedding."""
        return HeatProcess(self.schedule, self.embed, num_codes, self.sigma, self.delta, self.space)

    def embed(self, codes: Tensor) -> Tensor:
        """Embedded codes, scaled to unit variance over the training images: b *z -> b d *z."""
        return self.scale * self.first_stage.quantizer.embed(codes)

    def on_fit_start(self) -> None:
        """Measures the scale of the embedded codes, and blurs the training maps that samples start from.

        These are made again when a run goes on without people who were there before.
        """
        super().on_fit_start()
        ends = torch.tensor([1, self.schedule.num_levels])
        widths, times = self.schedule.sigma(ends).tolist(), self.schedule.heat_time(ends).tolist()
        say(
            f"blur of level 1 to {self.schedule.num_levels}: sigma {widths[0]:.3g} to {widths[1]:.3g}, heat time "
            f"{times[0]:.3g} to {times[1]:.3g}, in positions of the map"
        )
        if self.prior is not None and self.needed_spec().people == self.data.spec.people:  # a resumed run
            return
        assert self.table is not None
        people = self.data.people("train")
        if self.prior is None:
            _, deviation = moments(self.first_stage, self.table.pieces(people))
            self.scale.fill_(1 / deviation.clamp(min=1e-6))
        say(
            f"scale of codes: {self.scale.item():.4g}; the checkpoint will hold {self.num_priors} blurred code maps of "
            "training people, with little blur near copies of them"
        )
        rows = self.table.rows(people)
        prior = sent(self.table.read(rows[_spread(len(rows), self.num_priors).numpy()]).long(), self.device)
        self.prior = self.process.blur(prior, torch.full((len(prior),), self.process.num_levels)).float()

    def rehearsed(self, batch: Batch) -> Batch:
        """Takes blurred maps to start samples from, of the first image of the batch."""
        batch = super().rehearsed(batch)
        codes = self.codes(batch)[:1].expand(self.num_priors, *self.map_size)
        self.prior = self.process.blur(codes, torch.full((self.num_priors,), self.process.num_levels)).float()
        return batch

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Section 3.3: mean cross-entropy of the codes, nats per position; for K steps at uniformly spread levels."""
        codes = self.codes(batch)
        level = self.levels(len(codes))
        logits = self.training_logits(self.process.corrupt(codes, level), level, batch)
        loss = functional.cross_entropy(logits.movedim(-1, 1), codes)
        return {"loss": loss, "accuracy": (logits.argmax(-1) == codes).float().mean()}

    def levels(self, num: int) -> Tensor:
        """Level T for `num` images, b; for K steps, levels from 1 to T."""
        if self.num_steps > 1:
            return super().levels(num)
        return torch.full((num,), self.process.num_levels, device=self.device)

    def start(self, noise: SeededNoise, num: int) -> Tensor:
        """Algorithm 1: a blurred training map with noise."""
        if self.prior is None:
            raise InputError("this model has no blurred maps to start from: load it from a checkpoint, or fit it.")
        chosen = sent(_spread(len(self.prior), min(len(self.prior), self.num_priors)), self.prior.device)
        bank = sent(self.prior[chosen], self.device)
        prior = bank[(noise.uniform((), like=bank) * len(bank)).long()]
        return self.process.finish(prior + self.sigma * noise.like(prior))

    def step(self, logits: Tensor, state: Tensor, t: int, s: int, noise: SeededNoise) -> Tensor:
        """Blurs the guess again, for level s; codes of level 0 are sampled."""
        if s > 0 and self.guess == "mean":
            return self.process.reblur(self.process.mean(logits / max(self.temperature, 1e-6)), s, noise)
        return super().step(logits, state, t, s, noise)

    def as_image(self, state: Tensor) -> Tensor:
        """The first stage's image of codes, or of a blurred map."""
        if state.is_floating_point():
            return self.first_stage.decode(state / self.scale)
        return self.first_stage.decode_codes(state)

    def facts(self) -> dict[str, Any]:
        """The maps that samples start from, and which levels of which schedule the network has learned."""
        return {
            "prior": None if self.prior is None else self.prior.cpu(),
            "heat_times": self.schedule.heat_times.on(torch.device("cpu")),
            "every_level": self.num_steps > 1,
        }

    def restore(self, facts: dict[str, Any]) -> None:
        """Takes them back; InputError if the network is asked for levels that it has not learned."""
        self.prior = facts["prior"]
        if not torch.equal(facts["heat_times"], self.schedule.heat_times.on(torch.device("cpu"))):
            raise InputError("model.init_args.schedule: another than this model was trained with; leave it as it was.")
        if self.num_steps > 1 and not facts["every_level"]:
            raise InputError(
                f"model.init_args.num_steps is {self.num_steps}, but this model has learned the last level alone; "
                "train one with num_steps above 1."
            )


def _spread(length: int, num: int) -> Tensor:
    """`num` indices evenly spread over `length`: the middles of equal parts."""
    return ((torch.arange(num) + 0.5) / num * length).long()
