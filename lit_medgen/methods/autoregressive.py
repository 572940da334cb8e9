r"""Autoregressive transformer on code maps: codes are predicted one after the other, with an exact likelihood.

Esser, Rombach, Ommer. "Taming Transformers for High-Resolution Image Synthesis". CVPR 2021, section 3.2; for medical
images as in Pinaya et al. "Generative AI for Medical Imaging: extending the MONAI Framework" (2023), experiments II and
III, and Graham et al. "Transformer-based out-of-distribution detection for clinically safe segmentation". MIDL 2022.

    log p(s) = sum_i log p(s_i | s_<i),    s the codes of a map in their order

Sequences longer than `max_length` are learned, sampled and judged through windows of that many codes: the first window
gives the first `max_length` codes; then it moves by `stride` codes at a time, and gives those that are new in it. With
a stride of 1 each code is given all that its window can hold. Public implementations let a window slide and begin again
with position 0 each time; here a position is that of the whole sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.batch import Batch, Condition, Score, TrainingData, sent
from lit_medgen.diffusion import guided
from lit_medgen.diffusion.discrete import draw, top_logits
from lit_medgen.errors import InputError
from lit_medgen.methods.code_maps import CodeMaps
from lit_medgen.metrics.base import mean_over_people
from lit_medgen.networks.orderings import Ordering
from lit_medgen.networks.transformer import Cache, CausalTransformer
from lit_medgen.people import numbered
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.latents import encoded

AT_ONCE = 16
"""Test images whose likelihood is computed together."""
MAX_TRAINING = 128
"""Training images whose mean likelihood is what is typical."""


class Autoregressive(CodeMaps):
    """A transformer that predicts the codes of a first stage's maps one by one.

    Args:
        first_stage: checkpoint of the VQGAN.
        ordering: in which order the codes of a map come; kept in the checkpoint.
        max_length: codes of a window; None: the whole map.
        stride: codes by which a window moves in sampling and in likelihoods; 1 is exact.
        top_k: codes that are sampled from at each position, the most probable ones; None: all.
        top_p: share of probability that is sampled from, of the most probable codes; 1: all.
        others: see `CodeMaps`.
    """

    network: CausalTransformer
    order: Tensor

    def __init__(
        self,
        first_stage: str,
        ordering: Ordering = Ordering(),  # noqa: B008 (it is frozen)
        max_length: int | None = None,
        stride: int = 1,
        top_k: int | None = None,
        top_p: float = 1.0,
        **others: Any,
    ) -> None:
        super().__init__(first_stage, **others)
        for name, value in (("max_length", max_length), ("stride", stride), ("top_k", top_k)):
            if value is not None and value < 1:
                raise ValueError(f"model.init_args.{name} is {value}; give at least 1.")
        if max_length is not None and stride > max_length:
            raise ValueError(f"model.init_args.stride is {stride}, but max_length is {max_length}; give at most that.")
        if not 0 < top_p <= 1:
            raise ValueError(f"model.init_args.top_p is {top_p}; give more than 0 and at most 1.")
        self.ordering, self.max_length, self.stride = ordering, max_length, stride
        self.top_k, self.top_p = top_k, top_p
        self._predictions: list[dict[str, Any]] = []

    def build(self) -> None:
        """The transformer for the first stage's maps, and the order of their codes."""
        try:
            order = self.ordering.positions(self.map_size)
        except ValueError as error:
            raise InputError(f"model.init_args.{error}") from error
        self.register_buffer("order", order, persistent=False)
        self.network = CausalTransformer(len(order), self.first_stage.quantizer.num_codes, **vars(self.size))

    # Maps and sequences.

    def sequence(self, codes: Tensor) -> Tensor:
        """The codes of maps in their order, b *z -> b n."""
        return codes.flatten(1)[:, self.order]

    def map_of(self, sequence: Tensor) -> Tensor:
        """The maps of which these are the codes in order, b n -> b *z."""
        flat = torch.empty_like(sequence).scatter_(1, self.order.expand_as(sequence), sequence)
        return flat.unflatten(1, self.map_size)

    def read(self, sequence: Tensor) -> Tensor:
        """What the transformer reads at each position, the code before, b n -> b n."""
        return functional.pad(sequence[:, :-1], (1, 0), value=self.network.begin)

    def windows(self) -> Iterator[tuple[int, int, int]]:
        """Of each window its first position, the first whose code it gives, and the position after its last."""
        length = self.network.length
        end = min(self.max_length or length, length)
        yield 0, 0, end
        while end < length:
            first, end = end, min(end + self.stride, length)
            yield end - (self.max_length or length), first, end

    # The loss.

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of the codes, nats, and the same in bits; share of codes that were the most probable."""
        logits, target = self._predicted(batch, self.training_condition(batch.condition, len(batch.image)))
        loss = functional.cross_entropy(logits.movedim(-1, 1), target)
        accuracy = (logits.argmax(-1) == target).float().mean()
        return {"loss": loss, "bits_per_dim": loss.detach() / math.log(2), "accuracy": accuracy}

    def prediction(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        """Probabilities b p k of the codes of a window, and their mean cross-entropy in each map, b."""
        logits, target = self._predicted(batch, condition)
        error = functional.cross_entropy(logits.movedim(-1, 1), target, reduction="none")
        return logits.softmax(-1), error.mean(1)

    def _predicted(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        """Logits b p k and codes b p of a window of each map: the whole one, or one at a place of its own."""
        sequence = self.sequence(self.codes(batch))
        length = min(self.max_length or self.network.length, self.network.length)
        room = self.network.length - length
        starts = torch.zeros(len(sequence), dtype=torch.int64, device=self.device)
        if room:
            starts = (self.times(len(sequence), 0.0) * (room + 1)).long().clamp(max=room)
        at = starts[:, None] + torch.arange(length, device=self.device)
        logits = self.network(self.read(sequence).gather(1, at), starts, condition)
        return logits.float(), sequence.gather(1, at)

    # Sampling.

    def walk(self, condition: Condition, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Maps of which one code more is known each time, b *z; unknown ones are K."""
        given, null = self.scaled(condition.to(self.device)), Condition()
        length, num = self.network.length, len(seeds)
        uniform = sent(SeededNoise(seeds).uniform((length,)), self.device)
        sequence = torch.full((num, length), self.network.begin, device=self.device)
        for start, first, end in self.windows():
            window = _Window(self.network, start)
            for i in range(first, end):
                logits = guided(
                    partial(window.logits, self.read(sequence), i),
                    given,
                    null,
                    self.conditioning.scale_at(1 - i / length),
                )
                probable = top_logits(logits, self.top_k, self.top_p)
                sequence[:, i] = draw(probable, self.temperature, uniform[:, i])
                yield self.map_of(sequence)

    def as_image(self, state: Tensor) -> Tensor:
        """The first stage's image of the codes so far; unknown ones are embedded as the zero vector."""
        return self.image_of_known(state, state == self.network.begin)

    # Likelihood.

    @torch.no_grad()
    def log_likelihood(self, codes: Tensor, condition: Condition) -> Tensor:
        """The log-probability of each code given those before it, b *z -> b *z, nats; their sum is that of the map.

        Args:
            codes: b *z.
            condition: as `scaled` gives it.
        """
        sequence, found = self.sequence(codes), []
        read = self.read(sequence)
        for start, first, end in self.windows():
            starts = torch.full((len(codes),), start, device=codes.device)
            logits = self.network(read[:, start:end], starts, condition)[:, first - start :].float()
            found.append(logits.log_softmax(-1).gather(-1, sequence[:, first:end, None])[..., 0])
        return self.map_of(torch.cat(found, dim=1))

    @torch.no_grad()
    def bits_per_code(self, images: Tensor, condition: Condition) -> Tensor:
        """Negative log-likelihood of codes of images b c *s, bits per code, b, given a condition that is `scaled`."""
        codes = encoded(self.first_stage, images).long()
        return -self.log_likelihood(codes, condition).flatten(1).mean(1) / math.log(2)

    def surprise(self, images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Bits per code of images whose conditions are unknown, b; seeds change nothing."""
        return {"bits_per_code": self.bits_per_code(images, self.scaled(Condition()))}

    def scores(self, data: TrainingData) -> dict[str, Score]:
        """Bits per code of test images, with an interval over people, and how untypical they are."""
        with self.as_in_evaluation():
            bits, keys = self._bits_of(data, "test", None)
            train, _ = self._bits_of(data, "train", MAX_TRAINING)
        everybody = data.people("test")
        people = [everybody.get(key, "") for key in keys]
        untypical = (bits - train.mean()).abs()
        self._predictions = [
            {"key": key, "person": i, "bits_per_code": round(b, 5), "untypical": round(u, 5)}
            for key, i, b, u in zip(keys, numbered(people), bits.tolist(), untypical.tolist(), strict=True)
        ]
        of = {
            "bits_per_code": (bits, "negative log-likelihood of the codes of test images, bits per code"),
            "untypical_bits": (untypical, "distance from the mean of training images of these bits per code"),
        }
        found = {name: (mean_over_people(values, people), words) for name, (values, words) in of.items()}
        own = {name: Score(mean.value, words, mean.interval, len(keys)) for name, (mean, words) in found.items()}
        return super().scores(data) | own

    def predictions(self) -> Sequence[Mapping[str, Any]]:
        """Likelihood and typicality of each test image."""
        return self._predictions

    def _bits_of(self, data: TrainingData, split: Any, num: int | None) -> tuple[Tensor, list[str]]:
        """Bits per code of images, n float64 on the CPU, and their keys."""
        requests, found, keys = data.requests(split, num), [], []
        for start in range(0, len(requests), AT_ONCE):
            request = requests.joined(range(start, min(start + AT_ONCE, len(requests)))).to(self.device)
            assert request.target is not None
            found.append(self.bits_per_code(request.target, self.scaled(request.condition)).double().cpu())
            keys += request.key
        return torch.cat(found), keys

    # What a checkpoint holds.

    def facts(self) -> dict[str, Any]:
        """The order of the codes."""
        return {"order": self.order.cpu()}

    def restore(self, facts: dict[str, Any]) -> None:
        """InputError if the codes came in another order."""
        if not torch.equal(facts["order"], self.order.cpu()):
            raise InputError("model.init_args.ordering: another than this model was trained with; leave it as it was.")


class _Window:
    """Reads a growing sequence from a position on, each code once for each condition."""

    def __init__(self, network: CausalTransformer, start: int) -> None:
        self.network, self.start = network, start
        self._caches: dict[int, Cache] = {}  # by the identity of a condition

    def logits(self, read: Tensor, i: int, condition: Condition) -> Tensor:
        """Logits b k of the code at a position i, after reading what was not read of the sequence b n up to there."""
        cache = self._caches.setdefault(id(condition), Cache())
        begin = self.start + cache.num_read
        starts = torch.full((len(read),), begin, device=read.device)
        logits: Tensor = self.network(read[:, begin : i + 1], starts, condition, cache)[:, -1]
        return logits.float()
