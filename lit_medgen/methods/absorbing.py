r"""Absorbing diffusion on code maps: codes are masked one by one, and predicted again in any order.

Bond-Taylor, Hessey, Sasaki, Breckon, Willcocks. "Unleashing Transformers: Parallel Token Prediction with Discrete
Absorbing Diffusion for Fast High-Resolution Image Generation from Vector-Quantized Codes". ECCV 2022. With the
cross-entropy CE_t of the masked codes, summed over them, at level t of T:

    elbo             -log p(z_0) <= sum_t E[CE_t / t]                                        (their eq. 7)
    reweighted_elbo  E_t[(T - t + 1) / T  CE_t]                                              (their eq. 11, over T)
    mlm              E[CE_t / number of masked codes]

each estimated at one level for each map, per code; their code has 1 - t / T for (T - t + 1) / T. `bits_per_dim`, which
is logged, is the estimate of the first for any loss. The transformer is not given the level (nor is theirs): the number
of masked codes tells it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.diffusion.discrete import AbsorbingProcess
from lit_medgen.errors import InputError
from lit_medgen.methods.code_maps import CodeDiffusion
from lit_medgen.seeds import SeededNoise


class Absorbing(CodeDiffusion):
    """Absorbing diffusion on the code maps of a first stage.

    Its other arguments are those of `CodeDiffusion` and `CodeMaps`.

    Args:
        first_stage: checkpoint of the VQGAN.
        num_levels: T, the number of levels of masking.
        num_steps: number of sampling steps, at most T.
        loss_kind: which of the three losses.
        canvas: size of sampled maps that are larger than those trained on; None: the same size.
    """

    process: AbsorbingProcess
    reads_embeddings = False

    def __init__(
        self,
        first_stage: str,
        num_levels: int = 256,
        num_steps: int = 256,
        loss_kind: Literal["elbo", "reweighted_elbo", "mlm"] = "reweighted_elbo",
        canvas: Sequence[int] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(first_stage, num_steps, **others)
        if num_steps > num_levels:
            raise ValueError(f"model.init_args.num_steps is {num_steps}, but num_levels is {num_levels}.")
        self.num_levels, self.loss_kind, self.canvas = num_levels, loss_kind, canvas

    def make_process(self, num_codes: int) -> AbsorbingProcess:
        """Masking, with the index after the last code as the mask."""
        return AbsorbingProcess(self.num_levels, num_codes)

    def check(self, spec: DataSpec) -> None:
        """InputError if the canvas is smaller than the maps."""
        super().check(spec)
        canvas, least = self.canvas or self.map_size, self.map_size
        if len(canvas) != len(least) or any(side < fewest for side, fewest in zip(canvas, least, strict=True)):
            raise InputError(
                f"model.init_args.canvas is {list(canvas)}; the maps trained on are {list(least)}; give "
                "as many axes and at least that."
            )

    def time(self, level: Tensor) -> Tensor:
        """Zeros: the transformer infers the level from the number of masked codes."""
        return torch.zeros(len(level), device=self.device)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The chosen loss, and the estimate of the bound in bits per code."""
        codes = self.codes(batch)
        level = self.levels(len(codes))
        state = self.process.corrupt(codes, level)
        error = self.process.masked_error(self.training_logits(state, level, batch), codes, state)
        num_masked = (state == self.process.mask).flatten(1).sum(1)
        last, numel = self.num_levels, codes[0].numel()
        weight = {
            "elbo": last / level / numel,
            "reweighted_elbo": (last - level + 1) / last / numel,
            "mlm": 1 / num_masked.clamp(min=1),
        }[self.loss_kind]
        bits = (last / level * error).mean() / (numel * math.log(2))
        return {"loss": (weight.to(error) * error).mean(), "bits_per_dim": bits.detach()}

    def hidden(self, state: Tensor) -> Tensor:
        """The masked codes alone, b *z of 0 and 1."""
        return (state == self.process.mask).float()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The bound at all levels, in bits per code."""
        super().test_step(batch, batch_idx)
        codes, condition = self.codes(batch), self.scaled(batch.condition)
        nats = self.process.bound(codes, lambda state, level: self.network(state, self.time(level), condition))
        bits = nats.mean() / (codes[0].numel() * math.log(2))
        self.log("test/bits_per_dim_all_levels", bits, on_epoch=True, sync_dist=True, batch_size=len(codes))

    def start(self, noise: SeededNoise, num: int) -> Tensor:
        """Maps in which every code is masked, b *z."""
        return torch.full((num, *(self.canvas or self.map_size)), self.process.mask, device=self.device)

    def guided_logits(self, state: Tensor, level: Tensor, condition: Condition, scale: float) -> Tensor:
        """Logits; of a map larger than the transformer's, the mean over windows that overlap by half (section 3.4)."""
        if state.shape[1:] == self.map_size:
            return super().guided_logits(state, level, condition, scale)
        total = torch.zeros(*state.shape, self.process.mask, device=state.device)  # the mask is K
        count = torch.zeros(*state.shape[1:], 1, device=state.device)
        for window in windows(state.shape[1:], self.map_size):
            total[:, *window] += super().guided_logits(state[:, *window], level, condition, scale)
            count[*window] += 1
        return total / count

    def as_image(self, state: Tensor) -> Tensor:
        """The first stage's image of the codes so far; masked ones are embedded as the zero vector."""
        return self.image_of_known(state, state == self.process.mask)


def windows(size: Sequence[int], inner: Sequence[int]) -> list[tuple[slice, ...]]:
    """Windows of size `inner` that cover `size` and overlap by half."""
    starts = [
        sorted({*range(0, outer - side, max(1, side // 2)), outer - side})
        for outer, side in zip(size, inner, strict=True)
    ]
    return [
        tuple(slice(first, first + side) for first, side in zip(corner, inner, strict=True))
        for corner in product(*starts)
    ]
