"""`CodeMaps`: what methods on VQGAN's code maps share, and `CodeDiffusion`, those that destroy maps and restore them.

The codes of all images are made once and kept (`lit_medgen.training.latents`). In diffusion, a transformer gives the
distribution of the code at every position of the map, p(z_0 | z_t); the method says how maps are destroyed, and walks
back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional

from lit_medgen.batch import Batch, Condition, sent
from lit_medgen.diffusion import guided
from lit_medgen.diffusion.discrete import DiscreteProcess, descending, draw
from lit_medgen.diffusion.noise_levels import levels
from lit_medgen.errors import InputError
from lit_medgen.methods.vqgan import VQGAN
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.networks.transformer import CodeTransformer
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.conditional import Conditional, Conditioning
from lit_medgen.training.frozen import FrozenPart
from lit_medgen.training.latents import LatentStore, kept_of, without_images
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer

NUM_SHOWN = 8
"""Levels of a trajectory that are shown."""


@dataclass(frozen=True)
class TransformerSize:
    """Size of the transformer, and what it is told.

    Attributes:
        width: 512 in the paper.
        num_heads: 8 in the paper.
        num_layers: 24 in the paper.
        dropout: after attention and in the perceptrons.
        covariates: what it is told of an image; the paper's future work.
    """

    width: int = 512
    num_heads: int = 8
    num_layers: int = 24
    dropout: float = 0.0
    covariates: Covariates = field(default_factory=Covariates)


class CodeMaps(Conditional):
    """A transformer on the code maps of a VQGAN.

    Args:
        first_stage: checkpoint of the VQGAN.
        temperature: of the softmax that codes are sampled from; 0 takes the most probable code.
        network: size of the transformer, and its covariates.
        conditioning: how covariates are learned, and guide; None: dropped as often as its defaults say, no guidance.
        optimizer: makes the optimizer.
        learning_rate_schedule: factor of the optimizer's rate at each step.
    """

    first_stage: VQGAN
    reads_images = False

    def __init__(
        self,
        first_stage: str,
        temperature: float = 1.0,
        network: TransformerSize = TransformerSize(),
        conditioning: Conditioning | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(network.covariates, conditioning, optimizer, learning_rate_schedule)
        if temperature < 0:
            raise ValueError(f"model.init_args.temperature is {temperature}; give 0 or more.")
        if rescale := self.conditioning.guidance_rescale:
            raise ValueError(
                f"model.init_args.conditioning.guidance_rescale is {rescale}, but logits of "
                "codes have no standard deviation to keep; leave it out."
            )
        make = "python -m lit_medgen fit --config configs/vqgan.yaml"
        self.frozen_parts = {"first_stage": FrozenPart(Path(first_stage), VQGAN, make)}
        self.size, self.temperature = network, temperature
        self.table: LatentStore | None = None

    @property
    def map_size(self) -> tuple[int, ...]:
        """Codes of a map along each axis."""
        return self.first_stage.latent_shape[1:]

    def on_fit_start(self) -> None:
        """Has training and validation batches hold codes instead of images."""
        self.table = LatentStore.of_data(self.first_stage, self.data, self.trainer)
        self.data.read_latents(self.table)

    def rehearsed(self, batch: Batch) -> Batch:
        """The batch with codes in place of its images."""
        return without_images(super().rehearsed(batch), self.first_stage)

    def codes(self, batch: Batch) -> Tensor:
        """The codes of a batch's images, b *z: those that it holds, or else the first stage's."""
        if not self.built:
            raise InputError(f"{type(self).__name__} has no first stage yet; give --ckpt_path, or fit it.")
        return kept_of(self.first_stage, batch).long()

    # Sampling.

    @abstractmethod
    def walk(self, condition: Condition, seeds: Sequence[int]) -> Iterator[Tensor]:
        """The states of maps on their way, of which the last are the codes, b *z."""

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """b c *size in [-1, 1]."""
        (codes,) = deque(self.walk(condition, seeds), maxlen=1)
        return self.first_stage.decode_codes(codes)

    @torch.no_grad()
    def trajectory(self, condition: Condition, seed: int) -> Tensor:
        """n c *size in [-1, 1]: one sample at several steps of its making (the table 2 of VQ-IHDM's paper)."""
        states = list(self.walk(condition, [seed]))
        shown = sorted({-(-len(states) * (i + 1) // NUM_SHOWN) - 1 for i in range(NUM_SHOWN)})
        return torch.cat([self.as_image(states[i]) for i in shown])

    @abstractmethod
    def as_image(self, state: Tensor) -> Tensor:
        """The first stage's image of a state, b c *size in [-1, 1]."""

    def image_of_known(self, codes: Tensor, unknown: Tensor) -> Tensor:
        """The first stage's image of codes b *z, of which the unknown ones are embedded as the zero vector."""
        latent = self.first_stage.quantizer.embed(codes.masked_fill(unknown, 0))
        return self.first_stage.decode(latent.masked_fill(unknown[:, None], 0))


class CodeDiffusion(CodeMaps):
    """A process that destroys code maps step by step, and a transformer that guesses them whole.

    Args:
        first_stage: checkpoint of the VQGAN.
        num_steps: number of sampling steps.
        others: see `CodeMaps`.
    """

    process: DiscreteProcess
    reads_embeddings: bool
    """Whether the transformer reads embedded codes, or codes."""

    def __init__(self, first_stage: str, num_steps: int, **others: Any) -> None:
        super().__init__(first_stage, **others)
        if num_steps < 1:
            raise ValueError(f"model.init_args.num_steps is {num_steps}; give at least 1.")
        self.num_steps = num_steps

    def build(self) -> None:
        """The transformer for the first stage's maps, and the process."""
        quantizer = self.first_stage.quantizer
        channels = quantizer.channels if self.reads_embeddings else 0
        self.network = CodeTransformer(self.map_size, quantizer.num_codes, channels, **vars(self.size))
        self.process = self.make_process(quantizer.num_codes)

    @abstractmethod
    def make_process(self, num_codes: int) -> DiscreteProcess:
        """The process that destroys maps of so many different codes."""

    def time(self, level: Tensor) -> Tensor:
        """The level as the transformer reads it: b, in [0, 1]."""
        return sent(level / self.process.num_levels, self.device)

    def guided_logits(self, state: Tensor, level: Tensor, condition: Condition, scale: float) -> Tensor:
        """Logits b *z k of p(z_0 | z_t) at levels b, guided; the condition is one that `scaled` gave."""
        time = self.time(level)
        return guided(lambda given: self.network(state, time, given), condition, Condition(), scale)

    def training_logits(self, state: Tensor, level: Tensor, batch: Batch) -> Tensor:
        """Logits b *z k for the loss, without guidance; in training some covariates are dropped at random."""
        condition = self.training_condition(batch.condition, len(state))
        logits: Tensor = self.network(state, self.time(level), condition)
        return logits.float()

    def levels(self, num: int) -> Tensor:
        """Levels from 1 to T for `num` images, b, evenly spread over batch and ranks."""
        return levels(self.times(num, 0.0), self.process.num_levels)

    def prediction(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        """Probabilities b *z k of the codes that the state hides, and their mean cross-entropy in each map, b."""
        codes = self.codes(batch)
        level = self.levels(len(codes))
        state = self.process.corrupt(codes, level)
        logits, hidden = self.network(state, self.time(level), condition).float(), self.hidden(state)
        error = functional.cross_entropy(logits.movedim(-1, 1), codes, reduction="none") * hidden
        return logits.softmax(-1) * hidden[..., None], error.flatten(1).sum(1) / hidden.flatten(1).sum(1).clamp(min=1)

    def hidden(self, state: Tensor) -> Tensor:
        """Which codes of a state are not known from it, b *z of 0 and 1: all, unless a method says otherwise."""
        return torch.ones(len(state), *self.map_size, device=state.device)

    # Sampling.

    @abstractmethod
    def start(self, noise: SeededNoise, num: int) -> Tensor:
        """The state at level T for `num` images, which sampling begins with."""

    def walk(self, condition: Condition, seeds: Sequence[int]) -> Iterator[Tensor]:
        """The states at the levels after T, down to level 0, whose state is the codes."""
        noise, conditioning = SeededNoise(seeds), self.scaled(condition.to(self.device))
        state, last = self.start(noise, len(seeds)), self.process.num_levels
        for t, s in pairwise(descending(last, self.num_steps)):
            level, scale = torch.full((len(seeds),), t, device=self.device), self.conditioning.scale_at(t / last)
            logits = self.guided_logits(state, level, conditioning, scale)
            state = self.step(logits, state, t, s, noise)
            yield state

    def step(self, logits: Tensor, state: Tensor, t: int, s: int, noise: SeededNoise) -> Tensor:
        """The state at level s < t from that at t and the logits of z_0."""
        codes = draw(logits, self.temperature, noise.uniform(logits.shape[1:-1], like=logits))
        return self.process.reverse(codes, state, t, s, noise)
