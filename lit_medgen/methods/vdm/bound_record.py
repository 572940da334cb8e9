"""What a run keeps of its bound to plot: its terms at each validation, gamma, and an image on its way to noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lit_medgen.batch import Score
from lit_medgen.images.bound_plots import save_bound, save_noising, save_schedule
from lit_medgen.metrics.base import mean_over_people

TERMS = {
    "reconstruction": "reconstruction term -log p(x | z_0)",
    "diffusion": "diffusion term",
    "prior": "prior term KL(q(z_1 | x) || N(0, I))",
}
"""Terms of the bound, in words."""


def scores_of(terms: Mapping[str, Tensor], people: Sequence[str], time: str, is_discrete: bool) -> dict[str, Score]:
    """The means over test images of the bound, `bits_per_dimension`, and of its terms, with intervals over people.

    Args:
        terms: of each image, n float64 by name, in bits per dimension.
        people: n, whose each image is.
        time: what time the bound is of, in words.
        is_discrete: whether it is of grey values.
    """
    kind = "" if is_discrete else "; not of grey values, so not comparable with a compressor"
    rows = {"bits_per_dimension": (torch.stack(list(terms.values())).sum(0), "bound of the negative log-likelihood")}
    rows |= {f"{name}_bits": (terms[name], words) for name, words in TERMS.items()}
    scores = {}
    for name, (values, words) in rows.items():
        found = mean_over_people(values, people)
        of = f"{words} of test images, bits per dimension, {time}{kind}"
        scores[name] = Score(found.value, of, found.interval, len(people))
    return scores


class BoundRecord:
    """The terms of the bound at each validation of a run, and what else the newest one shows.

    Attributes:
        gamma: -log SNR of the schedule at even times in [0, 1], n; None before it was looked at.
        noising: rows of images b c *s in [-1, 1] by name: one at growing times; None before it was looked at.
    """

    def __init__(self) -> None:
        self.rows: list[list[float]] = []  # step, then the terms in bits per dimension
        self.gamma: Tensor | None = None
        self.noising: dict[str, Tensor] | None = None
        self._sums: Tensor | None = None

    def clear(self) -> None:
        """Forgets the sums of a validation that is over, or was left."""
        self._sums = None

    def add(self, terms: Mapping[str, Tensor], num: int) -> None:
        """Adds the mean terms of `num` images of a validation; numbers without dimensions."""
        means = torch.stack([*(terms[name].detach().float() for name in TERMS), torch.ones_like(terms["prior"])])
        self._sums = num * means if self._sums is None else self._sums + num * means

    def close(self, step: int, num_processes: int) -> None:
        """Notes the means over all images of a validation, on all processes, as those after so many steps."""
        if self._sums is None:
            return
        if num_processes > 1:
            dist.all_reduce(self._sums)
        *sums, num = self._sums.tolist()
        self.rows = [*(row for row in self.rows if row[0] < step), [float(step), *(value / num for value in sums)]]
        self._sums = None

    def state(self) -> Tensor:
        """The rows as a tensor n 1 + terms, float64, for a checkpoint."""
        return torch.tensor(self.rows, dtype=torch.float64).view(-1, 1 + len(TERMS))

    def take(self, state: Tensor) -> None:
        """Takes back what `state` gave."""
        self.rows = state.tolist()

    def plots(self, num: int, times: Sequence[float], colour: bool) -> dict[str, Callable[[Path], None]]:
        """Name of a figure -> what writes it: `bound`, `schedule` and `noising`, as far as there is something to show.

        Args:
            num: values of an image, for nats of a whole image.
            times: those of the images in `noising`.
            colour: whether the three channels of images are red, green and blue.
        """
        found: dict[str, Callable[[Path], None]] = {}
        rows, gamma, noising = self.rows, self.gamma, self.noising
        if rows:
            found["bound"] = lambda path: save_bound(path, rows, list(TERMS), num)
        if gamma is not None:
            found["schedule"] = lambda path: save_schedule(path, gamma.cpu().numpy())
        if noising is not None:
            found["noising"] = lambda path: save_noising(path, noising, times, colour)
        return found
