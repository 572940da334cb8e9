"""What networks are told of an image: numbers, categories, sets of labels and text, any subset of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all attributes."""
        return (*self.numbers, *self.categories, *(name for labels in self.labels.values() for name in labels))
