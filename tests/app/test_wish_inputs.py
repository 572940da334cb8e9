"""Lists and sliders for attributes: ranges of the training people, names of categories, and what is left unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr
from test_desk import FLAT, Drawing, desk

from lit_medgen.app.desk import Wishes
from lit_medgen.app.wish_inputs import ANY, WishInputs


def test_lists_name_categories_and_sliders_have_the_range_of_the_training_people(tmp_path: Path) -> None:
    spec = replace(FLAT, category_names={"sex": ("F", "M")})
    with gr.Blocks(analytics_enabled=False):
        inputs = WishInputs(Drawing(spec=spec), spec)
    asked, sex, age = inputs.components
    assert [value for _, value in sex.choices] == [ANY, "F", "M"]
    assert (age.minimum, age.maximum, age.step) == (50, 90, 1)
    assert [name for name, _ in asked.choices] == ["age"]
    assert inputs.attributes([[], ANY, 70]) == {}
    assert inputs.attributes([["age"], "M", 70]) == {"sex": 1.0, "age": 70.0}
    at = desk(tmp_path, spec=spec)
    made_from = at.requests(Wishes(0, inputs.attributes([["age"], "M", 70]))).made_from
    assert made_from == [{"sex": 1.0, "age": 70.0}]
