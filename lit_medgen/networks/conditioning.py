"""What networks are told of an image: numbers, categories, sets of labels and text, any subset of them.

Each covariate becomes a token; one that is absent (NaN) is a learned null of its own, so any subset can be asked for. A
network reads all tokens by attention, or their sum, which joins the embedding of the time, or both (as the class and
text conditions of Rombach et al. 2022, section 3.3, and Dhariwal & Nichol 2021, section 4).

Shapes: b batch, n tokens, d channels of a text's token, e width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.batch import Condition
from lit_medgen.networks.blocks import zero

NULL_STD = 0.2
"""Standard deviation of nulls and categories at first: that of the other tokens."""


@dataclass(frozen=True)
class Covariates:
    """What a network is told of an image.

    Attributes:
        numbers: names of attributes that are numbers, e.g. age_years.
        categories: name of an attribute -> how many values it has, which are 0, 1, ...
        labels: name of a set of labels -> the labels, each an attribute that is 0 or 1 (findings of an X-ray).
        text_channels: width of a token of the text embeddings; 0: no text.
        text_tokens: tokens of a text.
    """

    numbers: Sequence[str] = ()
    categories: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    text_channels: int = 0
    text_tokens: int = 0

    def __post_init__(self) -> None:
        """ValueError for a name that comes twice, and for what has no values."""
        key = "network.init_args.covariates"
        if repeated := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(f"{key}: {repeated[0]!r} comes twice; name each attribute once.")
        for name, num in self.categories.items():
            if num < 1:
                raise ValueError(f"{key}.categories: {name} has {num} values; give how many there are, at least 1.")
        for name, labels in self.labels.items():
            if not labels or isinstance(labels, str):
                raise ValueError(f"{key}.labels: {name} is {labels!r}; give a list of attributes.")
        if min(self.text_channels, self.text_tokens) < 0 or (self.text_channels > 0) != (self.text_tokens > 0):
            raise ValueError(
                f"{key}: text_channels is {self.text_channels} and text_tokens {self.text_tokens}; give the width and "
                "number of a text's tokens, or 0 for both."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all attributes."""
        return (*self.numbers, *self.categories, *(name for labels in self.labels.values() for name in labels))

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Covariate -> its attributes, which are absent together: one, or a set of labels; without the text."""
        alone: dict[str, tuple[str, ...]] = {name: (name,) for name in (*self.numbers, *self.categories)}
        return alone | {name: tuple(labels) for name, labels in self.labels.items()}

    def __bool__(self) -> bool:
        return bool(self.names) or self.text_channels > 0


class ConditionEncoder(nn.Module):
    """Condition to tokens, one for each covariate and those of the text, and to the embedding that sums them up.

    Numbers arrive scaled to [0, 1] over the training people; categories and labels as the data has them. Attributes
    that the condition does not name are absent.

    Args:
        covariates: what is read; all else of a condition is ignored.
        width: of a token and of the embedding, e.
    """

    null_text: Tensor

    def __init__(self, covariates: Covariates, width: int) -> None:
        super().__init__()
        self.covariates = covariates
        readers: dict[str, CovariateToken] = {}
        readers |= {_module("number", name): NumberToken(name, width) for name in covariates.numbers}
        readers |= {
            _module("category", name): CategoryToken(name, n, width) for name, n in covariates.categories.items()
        }
        readers |= {_module("labels", name): LabelsToken(names, width) for name, names in covariates.labels.items()}
        if len(readers) < len(covariates.groups):
            raise ValueError("network.init_args.covariates: names that differ in dots alone; rename one of them.")
        self.readers = nn.ModuleDict(readers)
        self.text = nn.Linear(covariates.text_channels, width) if covariates.text_channels else None
        null = torch.full((covariates.text_tokens, covariates.text_channels), torch.nan)
        null[:1] = 0
        self.register_buffer("null_text", null if covariates.text_channels else None)
        # Zero-initialised: at first a network is the one without covariates, whatever the scale of its time embedding.
        self.out = zero(nn.Linear(width, width))

    def forward(self, condition: Condition | None, num: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The condition of `num` images as embedding b e and tokens b n e; b n, bool: which tokens are no padding.

        The last is None where no token is padding. ValueError for a text of other tokens than the covariates say.
        """
        condition = condition or Condition()
        attributes = condition.attributes
        tokens = [reader(attributes, num) for reader in self.readers.values()]
        if self.text is None:
            every = torch.stack(tokens, dim=1)
            return self.out(every.sum(1)), every, None
        text, real = self._text(condition.text, num)
        mean = text.masked_fill(~real[..., None], 0).sum(1) / real.sum(1, keepdim=True)
        every = torch.cat([*(token[:, None] for token in tokens), text], dim=1)
        mask = functional.pad(real, (len(tokens), 0), value=True)
        return self.out(sum(tokens, start=mean)), every, mask

    def set_null_text(self, text: Tensor) -> None:
        """Takes the embedded empty text, n d with NaN for padding, as what an absent text is."""
        if text.shape[0] > self.null_text.shape[0] or text.shape[1] != self.null_text.shape[1]:
            raise ValueError(f"the empty text is {tuple(text.shape)}, not at most {tuple(self.null_text.shape)}.")
        self.null_text.fill_(torch.nan)
        self.null_text[: len(text)] = text

    def _text(self, text: Tensor | None, num: int) -> tuple[Tensor, Tensor]:
        """The text's tokens, b n e, and which are no padding, b n; an absent text is the null text."""
        assert self.text is not None
        null = self.null_text
        if text is None:
            text = null.expand(num, -1, -1)
        if text.shape[1] > null.shape[0] or text.shape[2] != null.shape[1]:
            raise ValueError(
                f"a text has {text.shape[1]} tokens of {text.shape[2]} channels; network.init_args.covariates says "
                f"text_tokens {null.shape[0]} and text_channels {null.shape[1]}; give those of the embeddings."
            )
        # Always as many tokens, so that the text of one image does not depend on how long those of others are.
        text = functional.pad(text.to(null), (0, 0, 0, null.shape[0] - text.shape[1]), value=torch.nan)
        real = ~text.isnan().any(-1)
        text = torch.where(real.any(1)[:, None, None], text, null)
        real = ~text.isnan().any(-1)
        # A null without tokens would leave attention with nothing: its first is then zero.
        real[:, 0] |= ~real.any(1)
        return self.text(text.nan_to_num()), real


class CovariateToken(nn.Module):
    """The token of a covariate: what it is, or a learned null where one of its attributes is absent.

    Args:
        names: of its attributes.
        width: of the token, e.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.null = nn.Parameter(NULL_STD * torch.randn(width))

    def forward(self, attributes: Mapping[str, Tensor], num: int) -> Tensor:
        """b e for `num` images, from attributes by name (b, NaN where unknown)."""
        absent = self.null.new_full((num,), torch.nan)
        values = torch.stack([attributes.get(name, absent).to(absent) for name in self.names], dim=1)
        known = self.known(values)
        return torch.where(known, self.embed(torch.where(known, values, 0)), self.null)

    def known(self, values: Tensor) -> Tensor:
        """Whether all attributes are; b k -> b 1, bool."""
        return ~values.isnan().any(1, keepdim=True)

    def embed(self, values: Tensor) -> Tensor:
        """The token of known values; b k -> b e."""
        raise NotImplementedError


class NumberToken(CovariateToken):
    """The token of a number: a perceptron, which goes on as a straight line outside the range it was trained on."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__((name,), width)
        self.perceptron = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def embed(self, values: Tensor) -> Tensor:
        """The token of values that are about 0 to 1; b 1 -> b e."""
        result: Tensor = self.perceptron(2 * values - 1)
        return result


class CategoryToken(CovariateToken):
    """The token of a category, 0, 1, ...; what is no category is taken as absent, as to refuse it waits for the device.

    It is refused where data and requests are checked.
    """

    def __init__(self, name: str, num: int, width: int) -> None:
        super().__init__((name,), width)
        self.embedding = nn.Embedding(num, width)
        nn.init.normal_(self.embedding.weight, std=NULL_STD)

    def known(self, values: Tensor) -> Tensor:
        """Which values are categories; b 1 -> b 1, bool."""
        return (values >= 0) & (values < self.embedding.num_embeddings) & (values == values.round())

    def embed(self, values: Tensor) -> Tensor:
        """The token of values 0, 1, ...; b 1 -> b e."""
        result: Tensor = self.embedding(values[:, 0].long())
        return result


class LabelsToken(CovariateToken):
    """The token of a set of labels, each 0 or 1; none of them is something else than an absent set."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__(names, width)
        self.linear = nn.Linear(len(names), width)

    def embed(self, values: Tensor) -> Tensor:
        """The token of labels; b k -> b e."""
        result: Tensor = self.linear(values)
        return result


def _module(kind: str, name: str) -> str:
    """The name of a covariate's module, which no attribute of `nn.Module` has; a dot would be a path."""
    return f"{kind}_{name.replace('.', '_')}"
