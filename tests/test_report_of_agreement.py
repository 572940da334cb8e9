"""Whether images show what was asked for, in reports: measured attributes beside real people's, and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluation import People
from torch import Tensor

from lit_medgen.batch import DataSpec, Images, Request, Requests
from lit_medgen.callbacks.report import logged
from lit_medgen.evaluation.agreement import RULES, Agreement, agreements, line_through, rule_for
from lit_medgen.evaluation.report import Maker, evaluate
from lit_medgen.evaluation.strips import NUM_VALUES, strips
from lit_medgen.metrics.known import Known
from lit_medgen.networks.conditioning import Covariates

SIZE = (20, 24, 20)
SPACING = (8.0, 8.0, 8.0)
SPEC = DataSpec(1, SIZE, SPACING, attributes={"ventricles_ml": (10.0, 80.0), "sex": (0.0, 1.0)}, codes=("sex",))


def brains(volumes: Sequence[float], spacing: tuple[float, ...] = SPACING, size: tuple[int, ...] = SIZE) -> Tensor:
    """n 1 *size: ellipsoids with a box of fluid of so many mL in the middle, by its width from left to right."""
    axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    inside = (x / 70) ** 2 + (y / 85) ** 2 + (z / 65) ** 2 < 1
    box = (y.abs() < 24) & ((z - 8).abs() < 16)
    made = []
    for volume in volumes:
        width = volume * 1000 / 48 / 32
        share = (width / 2 - x.abs()).div(spacing[0]).add(0.5).clamp(0, 1)
        made.append(inside * (0.6 - 0.24 * share * box) * 2 - 1)
    return torch.stack(made)[:, None].float()


@dataclass
class MeasuredPeople(People):
    """People of known ventricles, test people only."""

    volumes: Sequence[float] = ()
    spec: DataSpec = SPEC

    def requests(self, split: str) -> Requests:
        rows = [{"key": f"test {i}", "ventricles_ml": volume} for i, volume in enumerate(self.volumes)]
        return Requests(range(len(rows)), rows, frozenset({"attributes"}), lambda i: Request([i]))


VOLUMES = [12.0, 20, 25, 31, 38, 44, 52, 60, 66, 75]


@pytest.fixture
def people() -> MeasuredPeople:
    return MeasuredPeople(brains(VOLUMES), brains(VOLUMES), anatomy="brain", volumes=VOLUMES)


def of(samples: Tensor, made_from: Sequence[dict[str, Any]], people: MeasuredPeople) -> dict[str, Agreement]:
    images, real = Images.of(samples), people.images("test", one_per_person=True)
    return agreements(images, real, made_from, people, Known(remember=False))  # type: ignore[arg-type]


def test_images_that_show_what_was_asked_for_agree(people: MeasuredPeople) -> None:
    asked = [{"key": f"test {i}", "ventricles_ml": volume} for i, volume in enumerate(VOLUMES)]
    agreement = of(brains(VOLUMES), asked, people)["ventricles_ml"]
    assert agreement.unit == ("mL", "mL")
    assert agreement.rows.keys() == {"ventricles_ml_r", "ventricles_ml_slope", "ventricles_ml_error"}
    assert agreement.rows["ventricles_ml_r"]["value"] > 0.999
    assert agreement.rows["ventricles_ml_slope"]["value"] == pytest.approx(1, abs=0.05)
    assert agreement.rows["ventricles_ml_error"]["value"] < 1
    for row in agreement.rows.values():  # the samples are the real images
        assert (row["value"], row["ci95"]) == (row["real"], row["real_ci95"])
        assert (row["num"], row["num_real"]) == (10, 10)


def test_images_that_show_half_as_much_have_half_the_slope(people: MeasuredPeople) -> None:
    asked = [{"key": f"test {i}", "ventricles_ml": volume} for i, volume in enumerate(VOLUMES)]
    rows = of(brains([20 + volume / 2 for volume in VOLUMES]), asked, people)["ventricles_ml"].rows
    assert rows["ventricles_ml_slope"]["value"] == pytest.approx(0.5, abs=0.03)
    assert rows["ventricles_ml_slope"]["real"] == pytest.approx(1, abs=0.05)
    mean = sum(abs(20 - volume / 2) for volume in VOLUMES) / 10
    assert rows["ventricles_ml_error"]["value"] == pytest.approx(mean, rel=0.1)


def test_deaf_images_do_not_agree(people: MeasuredPeople) -> None:
    asked = [{"key": f"test {i}", "ventricles_ml": volume} for i, volume in enumerate(VOLUMES)]
    row = of(brains(VOLUMES[1::2] + VOLUMES[::2][::-1]), asked, people)["ventricles_ml"].rows["ventricles_ml_r"]
    assert row["ci95"][0] < 0 < row["ci95"][1] < row["real"]


def test_units_are_those_of_the_name(people: MeasuredPeople) -> None:
    """mm3 is converted; without a unit there is no error; requests without the attribute do not count."""
    asked = [{"Ventricles_mm3": 1000 * volume, "ventricles": volume / 3} for volume in VOLUMES]
    asked += [{}, {"ventricles": None, "age": 3.0}]
    people.volumes = VOLUMES
    people.requests = (
        lambda split: replace(  # type: ignore[method-assign]
            Requests([], [], frozenset(), lambda i: Request([i])),
            made_from=[row | {"key": f"test {i}"} for i, row in enumerate(asked[:10])],
        )
    )
    found = of(brains([*VOLUMES, 20, 30]), asked, people)
    assert found["Ventricles_mm3"].rows["Ventricles_mm3_slope"]["value"] == pytest.approx(1, abs=0.05)
    assert found["Ventricles_mm3"].rows["Ventricles_mm3_error"]["value"] < 1000
    assert found["Ventricles_mm3"].rows["Ventricles_mm3_r"]["num"] == 10
    assert found["ventricles"].rows.keys() == {"ventricles_r", "ventricles_slope"}
    assert found["ventricles"].rows["ventricles_slope"]["value"] == pytest.approx(3, abs=0.1)
    people.anatomy = ""
    assert not of(brains(VOLUMES), asked[:10], people)


def test_images_of_one_person_are_one_point(people: MeasuredPeople) -> None:
    """Four slices of each of five people, asked for twice: ten points, of which the jackknife leaves out two."""
    names = [f"person {i // 2}" for i in range(10)]
    people.test_people = names
    asked = [{"key": f"test {i}", "ventricles_ml": VOLUMES[i] - VOLUMES[i] % 2} for i in range(10)] * 2
    people.volumes = [row["ventricles_ml"] for row in asked[:10]]
    agreement = of(brains(VOLUMES * 2), asked, people)["ventricles_ml"]
    assert agreement.samples.people == [f"person {i}" for i in range(5)] * 2
    assert agreement.real.people == [f"person {i}" for i in range(5)]
    mean = (people.volumes[0] + people.volumes[1]) / 2
    assert agreement.samples.requested[0] == mean


def test_the_line_is_the_least_squares_line(people: MeasuredPeople) -> None:
    asked = [{"key": f"test {i}", "ventricles_ml": volume} for i, volume in enumerate(VOLUMES)]
    points = of(brains(VOLUMES), asked, people)["ventricles_ml"].samples
    line = line_through(points)
    design = torch.stack([torch.ones(10, dtype=torch.float64), points.requested], dim=1)
    offset, slope = torch.linalg.lstsq(design, points.measured[:, None]).solution[:, 0]
    torch.testing.assert_close(line.measured, offset + slope * line.requested)
    middle = line.error[len(line.error) // 2]
    assert middle < line.error[0]
    assert middle < line.error[-1]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("ventricles_ml", 0),
        ("Ventricles", 0),
        ("ventricular_csf_normalised_mm3", 0),
        ("lateral_ventricles", 0),
        ("ventricles_labelmap_ml", 0),
        ("brain_ml", 1),
        ("brain_volume", 1),
        ("brain", 1),
        ("brain_age", None),
        ("brain_stem_ml", None),
        ("cortical_csf_ml", None),
        ("age_years", None),
    ],
)
def test_attributes_are_known_by_their_names(name: str, rule: int | None) -> None:
    assert rule_for(name) is (None if rule is None else RULES[rule])


def test_strips_show_every_attribute_of_one_seed() -> None:
    spec = replace(SPEC, attributes=SPEC.attributes | {"grade": (0.0, 2.0), "fluid": (0.0, 1.0), "mass": (0.0, 1.0)})
    covariates = Covariates(("ventricles_ml",), {"grade": 3, "sex": 2}, {"findings": ["fluid", "mass"]})
    asked: list[Request] = []

    def show(requests: Requests) -> list[Tensor]:
        asked.extend(requests.batches(4))
        return [torch.zeros(len(requests), 1, 2, 2)]

    found = strips(show, covariates.names, spec, covariates)
    assert {seed for request in asked for seed in request.seeds} == {0}
    assert found["ventricles_ml"].values == pytest.approx([10 + 70 / 6 * i for i in range(NUM_VALUES)])
    assert [found[name].values for name in ("grade", "sex", "mass")] == [[0, 1, 2], [0, 1], [0, 1]]
    assert {name: value.tolist() for name, value in asked[-1].condition.attributes.items()} == {
        "fluid": [0, 0],
        "mass": [0, 1],
    }
    assert all(len(request.condition.attributes) == 1 for request in asked[:-2])


def test_a_report_has_scores_and_pictures_of_what_was_asked_for(people: MeasuredPeople, tmp_path: Path) -> None:
    """Only where something was asked for: a second report in the same folder has none of the pictures."""
    people.cache = tmp_path
    asked = [{"key": f"test {i}", "ventricles_ml": volume} for i, volume in enumerate(VOLUMES)]

    def show(requests: Requests) -> list[Tensor]:
        return [brains([float(row["ventricles_ml"]) for row in requests.made_from])]

    maker = Maker("Painter", show=show, attributes=("ventricles_ml",))
    out, images, always = tmp_path / "report", Images.of(brains(VOLUMES)), {"scores.png", "samples.png", "map.png"}
    report = evaluate(images, people, out, maker, features="none", made_from=asked)  # type: ignore[arg-type]
    pictures = {str(path.relative_to(out)) for path in out.glob("**/*.png")}
    assert pictures == always | {"agreement.png", "attributes/ventricles_ml.png"}
    assert json.loads((out / "report.json").read_text()) == report
    assert logged(report)["agreement.ventricles_ml_r.value"] == report["agreement"]["ventricles_ml_r"]["value"] > 0.99
    assert "asked for and what is measured correlate: ventricles_ml 1.00, real people 1.00." in report["verdict"]
    text = (out / "report.md").read_text()
    assert "| ventricles_ml_r | " in text
    assert "(attributes/ventricles_ml.png)" in text
    second = evaluate(images, people, out, Maker("Painter"), features="none")  # type: ignore[arg-type]
    assert not second["agreement"]
    assert {path.name for path in out.glob("**/*.png")} == always
