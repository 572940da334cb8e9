r"""Couplings of noise to data: which noise of a batch each of its images is trained with.

Paired at random, the straight paths from noise to images cross, and the flow, which is their mean, is bent: it takes
more steps. Mini-batch optimal transport (Tong et al. 2024, "Improving and Generalizing Flow-Based Generative Models
with Minibatch Optimal Transport", OT-CFM) takes the permutation p of a batch's noise with the least

    sum_i |x_i - eps_p(i)|^2.

Each noise is used once, so both marginals stay. With conditions that is not enough: the noise would depend on the
condition, while sampling draws it independently. Then images exchange noise only with those of the same class, which
keeps the noise normal within each class.

Shapes: b images, c channels, *s spatial axes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lit_medgen.batch import Condition, sent


class OptimalTransport:
    """Pairs the noise of a training batch with its images at the least squared distance, within classes.

    For training alone: a pairing depends on the whole batch, and an evaluation must not. It costs one wait for the
    device a step. Small batches, and classes of which a batch holds one or two images, gain little.

    Args:
        bins: name of a continuous attribute -> rising edges of its bins, in the attribute's own unit, such as
            {age_years: [50, 60, 70]}; images whose values lie between the same edges are of one class. Every continuous
            attribute that a model is conditioned on needs some.

    Raises:
        ValueError: edges that do not rise.
    """

    def __init__(self, bins: Mapping[str, Sequence[float]] | None = None) -> None:
        self.bins = {name: list(edges) for name, edges in (bins or {}).items()}
        for name, edges in self.bins.items():
            if not edges or not all(low < high for low, high in pairwise([*edges, float("inf")])):
                raise ValueError(f"bins.{name} is {edges}; give at least one edge, and edges that rise.")

    def check(self, numbers: Collection[str], text: bool = False) -> None:
        """ValueError if a model's condition has no classes: continuous attributes without bins, or a text.

        Args:
            numbers: names of the continuous attributes that a model is conditioned on.
            text: whether it is conditioned on text.
        """
        for name in numbers:
            if name not in self.bins:
                raise ValueError(
                    f"coupling: {name!r} is continuous, and nearly every image would be a class of its own; give the "
                    f"edges of its bins, e.g. bins: {{{name}: [low, high]}}."
                )
        for name in self.bins:
            if name not in numbers:
                have = ", ".join(map(repr, numbers)) or "none"
                raise ValueError(f"coupling: bins of {name!r}, but the model's continuous attributes are {have}.")
        if text:
            raise ValueError("coupling: texts have no classes; leave the coupling out, or the text.")

    def classes(self, condition: Condition, like: Tensor, numbers: Collection[str], others: Collection[str]) -> Tensor:
        """Class of each image, b, int64: images of one class agree in all attributes named.

        What is unknown, NaN or left out of the condition, is a value of its own.

        Args:
            condition: the attributes as the data give them, unscaled.
            like: b ..., whose device the classes are on.
            numbers: names of continuous attributes, which agree where they lie in the same bin.
            others: names of categorical attributes, which agree where they are equal.
        """
        self.check(numbers)
        same = torch.ones(len(like), len(like), dtype=torch.bool, device=like.device)
        for name in (*numbers, *others):
            if (value := condition.attributes.get(name)) is None:
                continue
            code = value.double()
            if name in self.bins:
                edges = sent(torch.tensor(self.bins[name], dtype=code.dtype), code.device)
                code = torch.bucketize(code, edges, right=True).double()
            code = torch.where(value.isnan(), -torch.inf, code)
            same &= code[:, None] == code
        return _first(same)

    @torch.no_grad()
    def __call__(self, x: Tensor, eps: Tensor, classes: Tensor | None = None) -> Tensor:
        """The noise in the order of the images it goes to, b c *s.

        Args:
            x: data, b c *s.
            eps: noise, b c *s.
            classes: b integers; noise is exchanged only between images of the same one. None: between all.
        """
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            # |x|^2 and |eps|^2 are the same for all pairings. What is not finite is left to the guard of the losses.
            cost = -(x.flatten(1).to(dtype) @ eps.flatten(1).to(dtype).mT).nan_to_num()
        ids = torch.zeros(len(x), device=x.device) if classes is None else _first(classes[:, None] == classes)
        on_cpu = torch.cat([cost, ids[:, None].to(dtype)], dim=1).cpu()  # one wait for both
        order = _assigned(on_cpu[:, :-1], on_cpu[:, -1])
        return eps.index_select(0, sent(order, eps.device))


def _first(same: Tensor) -> Tensor:
    """The first image that each agrees with, b, from which agree, b b: a number of its class, without a wait."""
    return same.int().argmax(1)


def _assigned(cost: Tensor, ids: Tensor) -> Tensor:
    """The noise of each image, b, at the least total cost, b b, among images of the same id, b; all on the CPU."""
    order = torch.empty(len(ids), dtype=torch.long)
    for one in set(ids.tolist()):
        members = (ids == one).nonzero().flatten()
        _, columns = linear_sum_assignment(cost[members][:, members].numpy())
        order[members] = members[torch.as_tensor(columns)]
    return order
