"""What a judge says of images that were asked to show something: of an obedient model, a deaf one, by a blind judge."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluation import People
from test_nodule_crops import SIZE, SPEC
from torch import Tensor

from lit_medgen.batch import Batch, Condition, DataSpec, Images, Request, Requests
from lit_medgen.callbacks.report import intervals, judge_of, logged
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.evaluation.control import controls
from lit_medgen.evaluation.judges import Judge, Judging, refuse_unfit_judge
from lit_medgen.evaluation.report import Maker, evaluate
from lit_medgen.networks.conditioning import Covariates

NUM = 12
BRIGHT = 0.5


@dataclass
class Brightness:
    """A judge: malignant is bright, and texture is from 1 to 5 as pixels go from -1 to 1."""

    outputs: Mapping[str, Any] = field(default_factory=lambda: {"malignant": "binary", "texture": "number"})
    crop_size: tuple[int, ...] = (16, 16)
    is_judge: bool = True
    spec: DataSpec = SPEC
    blind: bool = False

    def judged(self, images: Tensor) -> dict[str, Tensor]:
        middle = images[:, 0, 7:9, 7:9].mean((1, 2)) * (0 if self.blind else 1)
        return {"malignant": (middle + 1) / 2, "texture": 3 + 2 * middle}

    def needed_spec(self) -> DataSpec:
        return self.spec


@dataclass
class Chests(People):
    """Test people with a nodule each but the last, whose brightness is its label's."""

    spec: DataSpec = SPEC

    def made(self) -> Iterator[tuple[str, Condition, Tensor]]:
        for i in range(NUM):
            label_map, label = torch.ones(1, 1, *SIZE, dtype=torch.int64), float(i % 2)
            image = torch.full((1, 1, *SIZE), -0.8)
            if i < NUM - 1:
                box = (0, 0, slice(3 * i, 3 * i + 6), slice(20, 26))
                label_map[box] = 2 + i % 2
                image[box] = BRIGHT * (2 * label - 1) + i / 100
            attributes = {"malignant": torch.tensor([label]), "texture": torch.tensor([1 + 4 * label])}
            yield f"test {i}", Condition(attributes, label_map), image

    def people(self, split: str) -> dict[str, str]:
        return {f"test {i}": f"test {i // 2}" for i in range(NUM)}

    def stored(self, split: str, first: int = 0) -> Iterator[Batch]:
        for key, condition, image in self.made():
            yield Batch(image, [key], torch.eye(4)[None], condition)

    def requests(self, split: str) -> Requests:
        every = list(self.made())
        rows = [{"key": key} for key, *_ in every]

        def read(i: int) -> Request:
            return Request([i], every[i][1], target=every[i][2])

        return Requests(range(NUM), rows, frozenset({"label_map", "attributes"}), read)


def paint(asked: list[Request], heard: bool, requests: Requests) -> Iterator[Tensor]:
    """Images whose nodules are as bright as malignant is asked for; of a deaf model as bright as the seed says."""
    for request in requests.batches(5):
        asked.append(request)
        images = []
        for i, seed in enumerate(request.seeds):
            assert request.condition.label_map is not None
            wanted = request.condition.attributes.get("malignant", torch.full((9,), torch.nan))
            value = float(wanted[i]) if heard and not wanted[i].isnan() else 0.3
            inside = request.condition.label_map[i] > 1
            images.append(torch.where(inside, (2 * value - 1) * 0.4 + seed / 100, -1.0))
        yield torch.stack(images)


@pytest.fixture
def people() -> Chests:
    images = torch.cat([image for *_, image in Chests(torch.empty(0), torch.empty(0)).made()])
    return Chests(images.clone(), images, test_people=[f"test {i // 2}" for i in range(NUM)])


def judging(people: Chests, judge: Brightness, asked: list[Request], heard: bool = True) -> Judging:
    like, covariates = people.requests("test").only({"label_map"}, ()), Covariates(("malignant",))
    assert isinstance(judge, Judge)
    return Judging(
        judge,
        "judge.ckpt",
        lambda requests: paint(asked, heard, requests),
        like,
        ["malignant", "age"],
        covariates,
        torch.device("cpu"),
    )


def test_the_difference_is_that_of_the_images(people: Chests) -> None:
    """Same maps and seeds for both values, all else unknown; eleven maps of six people have a nodule."""
    asked: list[Request] = []
    found = controls(judging(people, Brightness(), asked), people, NUM)  # type: ignore[arg-type]
    assert found.keys() == {"malignant"}  # the model knows no texture, the judge no age
    seeds = [seed for request in asked for seed in request.seeds]
    assert seeds == [*range(NUM - 1)] * 2
    assert all(request.condition.attributes.keys() == {"malignant"} for request in asked)
    rows = found["malignant"].rows
    assert rows["malignant_difference"]["value"] == pytest.approx(0.4)
    assert rows["malignant_difference"]["ci95"] == pytest.approx([0.4, 0.4])
    assert rows["malignant_low"]["value"] == pytest.approx(0.3 + 0.05 / 2)
    assert rows["malignant_high"]["value"] == pytest.approx(0.7 + 0.05 / 2)
    assert rows["malignant_above"]["value"] == 1
    assert (rows["malignant_low"]["num"], rows["malignant_low"]["num_people"]) == (11, 6)
    assert rows["malignant_judge"]["value"] == 1  # real nodules are as bright as their labels
    assert rows["malignant_difference"]["real"] == pytest.approx(BRIGHT, abs=0.02)
    assert not found["malignant"].warning


def test_a_deaf_model_has_no_difference_and_a_blind_judge_proves_nothing(people: Chests) -> None:
    deaf = controls(judging(people, Brightness(), [], heard=False), people, NUM)["malignant"]  # type: ignore[arg-type]
    assert deaf.rows["malignant_difference"]["value"] == pytest.approx(0)
    assert deaf.rows["malignant_above"]["value"] == 0.5
    blind = controls(judging(people, Brightness(blind=True), []), people, NUM)["malignant"]  # type: ignore[arg-type]
    assert blind.rows["malignant_judge"]["value"] == 0.5
    assert "AUC 0.50 on the test people, below 0.75" in blind.warning
    other = replace(SPEC, people={"test": "abc"})
    flattered = controls(judging(people, Brightness(spec=other), []), people, NUM)["malignant"]  # type: ignore[arg-type]
    assert "another split" in flattered.warning


def test_numbers_have_a_share_of_variance(people: Chests) -> None:
    some = replace(judging(people, Brightness(), []), attributes=["texture"])
    found = controls(some, people, 6)["texture"]  # type: ignore[arg-type]
    assert found.asked == (1, 5)
    assert found.rows["texture_low"]["num"] == 6
    assert 0.5 < found.rows["texture_judge"]["value"] < 1
    assert found.rows["texture_judge"]["features"] == "R^2 of the judge"
    assert found.real is None


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (Brightness(is_judge=False), "does not tell labels of clean crops"),
        (object(), "object, which does not tell"),
        (Brightness({"spiculation": "number"}), "tells spiculation, but images can be asked to show malignant"),
        (Brightness(spec=replace(SPEC, intensity_window=(0, 9))), "intensity_window"),
        (Brightness(spec=replace(SPEC, spacing_mm=(2.0, 2.0))), "pixels of 2 mm, but the images are 80 x 72 of 0.7"),
        (Brightness(crop_size=(8, 8, 8)), "8 x 8 x 8"),
    ],
)
def test_what_cannot_judge(judge: object, words: str) -> None:
    with pytest.raises(InputError, match=r"^--judge j.ckpt: [^\n]+$") as error:
        refuse_unfit_judge(judge, "j.ckpt", SPEC, ["malignant"])
    assert words in str(error.value)


def test_a_judge_that_is_not_there_is_named_by_its_option(people: Chests) -> None:
    with pytest.raises(MissingDataError, match=r"^--judge: no file 'nowhere\.ckpt'; make it with `[^`]+crop_judge"):
        judge_of("nowhere.ckpt", None, people)  # type: ignore[arg-type]


def test_too_few_nodules_are_refused(people: Chests) -> None:
    with pytest.raises(InputError, match="of fewer than 2 people"):
        controls(judging(people, Brightness(), []), people, 2)  # type: ignore[arg-type]


def test_a_report_says_what_the_judge_says(people: Chests, tmp_path: Path) -> None:
    people.cache, out = tmp_path, tmp_path / "report"
    images = Images.of(people.test + 0.01 * torch.randn(people.test.shape))
    report = evaluate(
        images,
        people,
        out,
        Maker("Painter"),
        features="none",
        judging=judging(people, Brightness(), []),  # type: ignore[arg-type]
    )
    assert json.loads((out / "report.json").read_text()) == report
    assert logged(report)["control.malignant_difference.value"] == pytest.approx(0.4)
    assert intervals(report)["control.malignant_judge.value"] == [1, 1]
    assert (out / "control.png").exists()
    text = (out / "report.md").read_text()
    assert "| malignant_difference | 0.4 |" in text
    assert "(control.png)" in text
    assert "images are judged: malignant +0.4" in report["verdict"]
    second = evaluate(images, people, out, Maker("Painter"), features="none")  # type: ignore[arg-type]
    assert not second["control"]
    assert not (out / "control.png").exists()
