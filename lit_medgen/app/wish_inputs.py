"""Inputs of the attributes that images can be asked to show: a list or a slider for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lit_medgen.batch import DataSpec
from lit_medgen.training.generator import Generator

ANY = "any"
MIN_WHOLE_RANGE, NUM_STEPS = 4, 100
"""Sliders go in whole numbers where all values were whole and range so far; else in so many steps."""


class WishInputs:
    """A list for each category, with `any`, and for each number a slider that counts if it is ticked.

    Args:
        model: whose attributes they are.
        spec: of the data of its training, with their ranges.
    """

    def __init__(self, model: Generator, spec: DataSpec) -> None:
        codes = {name: 2 for name in spec.codes if name in model.attributes}
        self.categories = {name: _choices(name, num, spec) for name, num in {**codes, **model.categories}.items()}
        self.numbers = [name for name in model.attributes if name not in self.categories]
        lists = [gr.Dropdown([ANY, *choices], value=ANY, label=name) for name, choices in self.categories.items()]
        self.asked = gr.CheckboxGroup(self.numbers, label="asked for", visible=bool(self.numbers))
        sliders = [_slider(name, spec) for name in self.numbers]
        for name, slider in zip(self.numbers, sliders, strict=True):
            slider.release(_ticked(name), self.asked, self.asked, api_visibility="private", show_progress="hidden")
        self.components: list[Any] = [self.asked, *lists, *sliders]

    def attributes(self, values: Sequence[Any]) -> dict[str, float | str | None]:
        """Attribute -> what is asked for, of the values of `components`; what is not asked for is left out."""
        asked, *rest = values
        lists, sliders = rest[: len(self.categories)], rest[len(self.categories) :]
        chosen = {
            name: float(choices.index(value))
            for (name, choices), value in zip(self.categories.items(), lists, strict=True)
            if value != ANY
        }
        moved = {name: float(value) for name, value in zip(self.numbers, sliders, strict=True) if name in asked}
        return {**chosen, **moved}


def _choices(name: str, num: int, spec: DataSpec) -> list[str]:
    """The names of the values 0, 1, ... of a category."""
    return list(spec.category_names.get(name, ())) or (["no", "yes"] if num == 2 else [str(k) for k in range(num)])


def _slider(name: str, spec: DataSpec) -> gr.Slider:
    low, high = spec.attributes[name]
    whole = name not in spec.fractional and high - low >= MIN_WHOLE_RANGE
    step = 1.0 if whole else (high - low) / NUM_STEPS or 1.0
    middle, label = (low + high) / 2, f"{name} ({low:g} to {high:g})"
    return gr.Slider(low, high if high > low else low + 1, middle, step=step, label=label)


def _ticked(name: str) -> Any:
    """A function that adds a name to those that are asked for."""
    return lambda asked: [*asked, *([] if name in asked else [name])]
