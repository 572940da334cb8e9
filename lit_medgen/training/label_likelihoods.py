r"""Likelihoods of an image's labels: what a classifier's outputs mean, binary ones and numbers side by side.

    binary   p(y = 1 | x) = sigmoid(a)                                                    one column, a
    number   p(y | x)     = N((y - low) / (high - low); mu, exp(s)),  s in BOUNDS         two columns, mu and s

A number is scaled to [0, 1] by the range of the training people, and its density is that of the scaled number. s is
squeezed smoothly between its bounds, so that its gradient never vanishes altogether. Shapes: b images, k columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_medgen.errors import InputError

Kind = Literal["binary", "number"]
Range = tuple[float, float]
NUM_COLUMNS: dict[Kind, int] = {"binary": 1, "number": 2}
BOUNDS = (-6.0, 2.0)
"""Of the logarithm of a number's variance: standard deviations from 0.05 to 2.7 of the training range."""
LOG_2_PI = 1.8378770664093453


class LabelLikelihoods:
    """Reads the columns of a classifier, b k.

    Args:
        kinds: name of each label -> what it is, in the order of the columns.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.kinds: dict[str, Kind] = dict(kinds)
        self.num_columns = sum(NUM_COLUMNS[kind] for kind in self.kinds.values())

    def columns(self, found: Tensor, name: str) -> Tensor:
        """The columns of one label, b 1 or b 2, in float32; InputError if the network gives others than b k."""
        if found.ndim != 2 or found.shape[1] != self.num_columns:
            shape, needed = (
                " x ".join(map(str, found.shape[1:])),
                (f"{n} {NUM_COLUMNS[k]}" for n, k in self.kinds.items()),
            )
            raise InputError(
                f"model.init_args.network gives {shape} numbers of each image; expected {self.num_columns} "
                f"({', '.join(needed)}), as lit_medgen.networks.UNetEncoder gives."
            )
        names = list(self.kinds)
        first = sum(NUM_COLUMNS[self.kinds[before]] for before in names[: names.index(name)])
        return found[:, first : first + NUM_COLUMNS[self.kinds[name]]].float()

    def log_likelihood(self, found: Tensor, name: str, wanted: Tensor, within: Range) -> Tensor:
        """The log-likelihood log p(wanted | x), b; 0, without a gradient, where what is wanted is NaN.

        Args:
            found: the columns of all labels, b k.
            name: of the label.
            wanted: its values, b: 0 or 1, or numbers in the unit of the data.
            within: the range of the training people, which scales a number.
        """
        known, own = ~wanted.isnan(), self.columns(found, name)
        label = torch.where(known, self.scaled(wanted, name, within), 0.0)  # NaN would reach the gradient
        if self.kinds[name] == "binary":
            value = label * logsigmoid(own[:, 0]) + (1 - label) * logsigmoid(-own[:, 0])
        else:
            log_variance = self.log_variance(own[:, 1])
            error = (label - own[:, 0]).square()
            value = -0.5 * (error * (-log_variance).exp() + log_variance + LOG_2_PI)
        return torch.where(known, value, 0.0)

    def expected(self, found: Tensor, name: str, within: Range) -> Tensor:
        """Of a binary label the probability of 1, of a number its mean in the unit of the data; b."""
        value = self.columns(found, name)[:, 0]
        if self.kinds[name] == "binary":
            return value.sigmoid()
        low, high = within
        return low + (high - low) * value

    def scaled(self, value: Tensor, name: str, within: Range) -> Tensor:
        """A number in [0, 1] over the training range; a binary label as it is; float32 of the shape of the value."""
        if self.kinds[name] == "binary":
            return value.float()
        low, high = within
        return (value.float() - low) / (high - low)

    @staticmethod
    def log_variance(column: Tensor) -> Tensor:
        """The logarithm of the variance, in `BOUNDS`, from any number; of the shape of its argument."""
        low, high = BOUNDS
        return low + (high - low) * column.sigmoid()
