"""Laws of `utility`: copies are worth what originals are, chance is chance, toys are learned, intervals, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyRun, one_line
from torch import Tensor

from lit_medgen.__main__ import main
from lit_medgen.batch import ABSENT_CLASS, Condition, DataSpec, Images, Request, Requests
from lit_medgen.diffusion.heat import dissipate
from lit_medgen.errors import InputError
from lit_medgen.evaluation.utility import Plan, utility, write_utility
from lit_medgen.evaluation.utility_page import verdict
from lit_medgen.evaluation.utility_scores import differences, rows_of, values_of_outcomes
from lit_medgen.evaluation.utility_sets import Made, names_of_tasks, owned, refuse_few, refuse_unknown_split
from lit_medgen.evaluation.utility_tasks import MAX_VOXELS, Category, Number, Segmentation, Task, UnfitTaskError
from lit_medgen.evaluation.utility_training import Training
from lit_medgen.metrics.skill import AreaUnderROC, ExplainedVariance
from lit_medgen.networks.segmenter import ConvSegmenter

TRAINING = Training(num_steps=40, batch_size=16, device=torch.device("cpu"))
PLAN = Plan(shares=(0.25, 1.0), added=(1.0,), num_seeds=2)
FACTS = {"source": "toy", "name": "toy", "method": "Toy"}
SPLITS = ("train", "val", "test")


class ToyData:
    """People in memory: a disc (M) or a bar (F), as bright as they are old, in smooth noise; the map of the shape."""

    anatomy, digest = "", "0" * 64

    def __init__(self, cache: Path, nums: Sequence[int] = (48, 8, 32), size: tuple[int, ...] = (16, 16)) -> None:
        self.cache = cache
        self.spec = DataSpec(
            1,
            size,
            (1.0,) * len(size),
            classes=("background", "shape"),
            attributes={"sex": (0.0, 1.0), "age": (20.0, 80.0), "height": (1.0, 2.0)},
            codes=("sex",),
            category_names={"sex": ("F", "M")},
            people={split: split for split in SPLITS},
        )
        random = torch.Generator().manual_seed(0)
        place = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
        disc = sum(axis**2 for axis in place) < 0.3
        bar = (place[0].abs() < 0.9) & (place[1].abs() < 0.2)
        self.of: dict[str, tuple[Tensor, Tensor, list[dict[str, float]]]] = {}
        for split, num in zip(SPLITS, nums, strict=True):
            sex = (torch.arange(num) % 2).float()
            age = 20 + 60 * torch.rand(num, generator=random)
            noise = dissipate(torch.randn(num, 1, *size, generator=random), torch.full((num,), 0.5))
            maps = torch.stack([(disc if each else bar)[None] for each in sex.tolist()])
            level = ((age - 20) / 60).view(-1, *[1] * (len(size) + 1))
            images = (-0.6 + 0.3 * noise + maps * (0.4 + 0.8 * level)).clamp(-1, 1)
            rows = [{"sex": a, "age": b, "height": 1.5} for a, b in zip(sex.tolist(), age.tolist(), strict=True)]
            self.of[split] = images, maps.long(), rows

    def images(self, split: str, one_per_person: bool = False, limit: int | None = None) -> Images:
        names = [f"{split}{i}" for i in range(len(self.of[split][0]))]
        return Images(names, names, Images.of(self.of[split][0]).read)

    def people(self, split: str) -> dict[str, str]:
        return {name: name for name in self.images(split).keys}

    def requests(self, split: str, num: int | None = None) -> Requests:
        images, maps, rows = self.of[split]

        def read(index: int) -> Request:
            return Request([index], Condition(label_map=maps[index : index + 1]), target=images[index : index + 1])

        made_from = [{"key": f"{split}{i}", **row} for i, row in enumerate(rows)]
        return Requests(range(len(rows)), made_from, frozenset({"label_map"}), read)

    def copies(self, split: str = "train") -> Made:
        """The real images in the place of samples, asked to show what they show."""
        return Made(Images.of(self.of[split][0]), self.requests(split).made_from)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ToyData:
    return ToyData(tmp_path_factory.mktemp("store"))


def report_on(
    data: ToyData,
    made: Made,
    names: Sequence[str],
    plan: Plan = PLAN,
    training: Training = TRAINING,
    skip: bool = False,
) -> dict[str, Any]:
    return utility(owned(made, data), data, names, plan, training, FACTS, skip)  # type: ignore[arg-type]


def exchanged(made: Made) -> Made:
    """Samples that show nothing of what they were asked for: men and women, old and young ones are asked for alike."""
    rows = [
        {**row, "sex": float(i // 2 % 2), "age": made.made_from[i * 29 % 48]["age"]}
        for i, row in enumerate(made.made_from)
    ]
    return Made(made.images, rows)


@pytest.fixture(scope="module")
def of_copies(data: ToyData) -> dict[str, Any]:
    return report_on(data, data.copies(), ["sex", "age", "label_map"], Plan((1.0,), (1.0,), 2))


# Laws of the report.


def test_copies_are_worth_what_the_originals_are(of_copies: dict[str, Any]) -> None:
    """The same images in the same order, the same seeds and the same updates give the same networks, bit for bit."""
    for task in of_copies["tasks"].values():
        heads = task["heads"]
        for score, row in heads["synthetic"].items():
            assert row == heads["real"][score]
            assert heads["difference"][score]["value"] == 0
            assert heads["difference"][score]["ci95"] == [0, 0]
        less = task["curve"][0]["added"][0]["difference"][next(iter(task["scores"]))]
        assert less["ci95"][0] <= 1e-9  # twice the same images surely help nobody
        assert less["ci95"][1] >= -1e-9


def test_what_can_be_seen_is_learned(of_copies: dict[str, Any]) -> None:
    heads = {name: task["heads"] for name, task in of_copies["tasks"].items()}
    assert heads["sex"]["real"]["auc"]["value"] > 0.99
    assert heads["sex"]["reverse"]["auc"]["value"] > 0.99
    assert heads["age"]["real"]["r2"]["value"] > 0.8
    assert heads["age"]["real"]["mae"]["value"] < 6
    assert heads["label_map"]["real"]["dice"]["value"] > 0.9


def test_floors_are_those_of_chance(of_copies: dict[str, Any]) -> None:
    heads = {name: task["heads"] for name, task in of_copies["tasks"].items()}
    assert heads["sex"]["constant"]["auc"]["value"] == 0.5
    assert -0.2 < heads["age"]["constant"]["r2"]["value"] <= 0
    low, high = heads["sex"]["exchanged"]["auc"]["ci95"]
    assert low < 0.5 < high
    assert heads["age"]["exchanged"]["r2"]["ci95"][0] < 0
    for floor in ("constant", "exchanged"):
        assert heads["label_map"][floor]["dice"]["value"] < heads["label_map"]["real"]["dice"]["value"]


def test_samples_that_show_something_else_teach_nothing(data: ToyData) -> None:
    report = report_on(data, exchanged(data.copies()), ["sex", "age"], Plan((1.0,), (1.0,), 4))
    sex, age = (report["tasks"][name]["heads"] for name in ("sex", "age"))
    low, high = sex["synthetic"]["auc"]["ci95"]
    assert low < 0.5 < high
    assert sex["difference"]["auc"]["ci95"][1] < 0
    assert age["synthetic"]["r2"]["ci95"][0] < 0
    assert age["difference"]["r2"]["ci95"][1] < 0
    assert "samples teach surely less than real images" in report["verdict"]
    assert "surely harms" in report["verdict"]


def test_other_people_of_the_same_kind_are_not_told_apart_from_real_ones(data: ToyData, tmp_path: Path) -> None:
    """Where few people teach what is hard to see, adding as good images as theirs helps; alone they do as well."""
    others = ToyData(tmp_path, (48, 8, 80)).of["test"]
    made = Made(Images.of(others[0][:48]), [dict(row) for row in others[2][:48]])
    task = report_on(data, made, ["age"])["tasks"]["age"]
    low, high = task["heads"]["difference"]["r2"]["ci95"]
    assert low < 0 < high
    assert task["curve"][0]["people"] == 12
    assert task["curve"][0]["added"][0]["difference"]["r2"]["value"] > 0


def test_the_same_seed_gives_the_same_numbers(data: ToyData) -> None:
    made, plan = exchanged(data.copies()), Plan((0.5,), (0.5,), 1)
    first, again = (report_on(data, made, ["sex"], plan, replace(TRAINING, num_steps=5)) for _ in range(2))
    torch.rand(3)
    assert first == again
    assert first != report_on(data, made, ["sex"], plan, replace(TRAINING, num_steps=6))


def test_volumes_and_fewer_samples_than_people(tmp_path: Path) -> None:
    data = ToyData(tmp_path, (20, 4, 12), (16, 12, 8))
    made = data.copies()
    some = Made(Images.of(made.images.all()[:16]), made.made_from[:16])
    report = report_on(
        data, some, ["age", "label_map"], Plan((1.0,), (0.5, 1.0), 1), replace(TRAINING, num_steps=4, batch_size=8)
    )
    for task in report["tasks"].values():
        assert task["equal"] == 16
        assert [each["samples"] for each in task["curve"][0]["added"]] == [8, 16]
        assert math.isfinite(next(iter(task["heads"]["real"].values()))["value"])
    age = report["tasks"]["age"]
    assert age["heads"]["real"] != age["curve"][0]["real"]  # of 16 images, and of all


def test_files(of_copies: dict[str, Any], tmp_path: Path) -> None:
    write_utility(tmp_path, of_copies)
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == of_copies["verdict"]
    page = (tmp_path / "report.md").read_text()
    assert "## sex: a classifier" in page
    assert "| 100 %, 48 people | 48 |" in page
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "nan" not in page
    write_utility(tmp_path, of_copies)


# Scores and intervals.


@pytest.mark.parametrize("name", ["sex", "age"])
def test_the_interval_of_one_seed_is_that_of_the_metric(data: ToyData, name: str) -> None:
    random = torch.Generator().manual_seed(1)
    task: Task = Category("sex", data.spec) if name == "sex" else Number("age", data.spec)
    target = (torch.arange(20) % 2).double() if name == "sex" else torch.rand(20, generator=random).double()
    predicted = torch.rand(20, generator=random).double()
    outcomes = torch.stack([target, 1 - predicted, predicted] if name == "sex" else [target, predicted], dim=1)
    people = [str(i // 2) for i in range(20)]
    metric = AreaUnderROC() if name == "sex" else ExplainedVariance()
    metric.update(target, predicted, people)
    estimate = metric.estimate()
    row = rows_of(task, values_of_outcomes(task, [outcomes], people))[task.scores[0].name]
    assert row["value"] == pytest.approx(estimate.value)
    assert row["ci95"] == pytest.approx(list(estimate.ci95))


def test_intervals_of_differences_hold_the_truth_as_often_as_they_say(data: ToyData) -> None:
    """Two rules as good as each other: 0 is in 95 % of the intervals of their difference."""
    random, task, held = torch.Generator().manual_seed(0), Number("age", data.spec), 0
    people = [str(i) for i in range(30)]
    for _ in range(100):
        target = torch.randn(30, generator=random).double()
        both = [torch.stack([target, target + torch.randn(30, generator=random).double()], dim=1) for _ in range(2)]
        values = [values_of_outcomes(task, [each], people) for each in both]
        low, high = differences(task, *values)["mae"]["ci95"]
        held += low < 0 < high
    assert held / 100 == pytest.approx(0.95, abs=0.06)


def test_seeds_widen_the_interval(data: ToyData) -> None:
    random, task = torch.Generator().manual_seed(0), Number("age", data.spec)
    target = torch.randn(40, generator=random).double()
    outcomes = [torch.stack([target, target + shift], dim=1) for shift in (0.0, 1.0, 2.0)]
    row = rows_of(task, values_of_outcomes(task, outcomes, [str(i) for i in range(40)]))["mae"]
    assert row["value"] == pytest.approx(1)
    assert row["seeds"] == pytest.approx([0, 1, 2])
    assert row["ci95"] == pytest.approx(
        [0, 1 + 4.3027 / 3**0.5], abs=1e-3
    )  # Student's t; all people are predicted alike


def test_several_values_are_each_told_from_the_rest(data: ToyData) -> None:
    spec = replace(data.spec, attributes={"site": (0.0, 2.0)}, codes=(), category_names={"site": ("a", "b", "c")})
    task, target = Category("site", spec), torch.arange(12) % 3
    right = torch.cat([target[:, None].double(), torch.eye(3, dtype=torch.float64)[target]], dim=1)
    assert task.score(right) == [1.0]
    assert task.score(task.constant(target, target)) == [0.5]
    wrong = right.clone()
    wrong[:, 1] = 0.5  # of the first value nothing is predicted
    assert task.score(wrong) == [pytest.approx(5 / 6)]
    assert Category("site", spec, (1, 2)).score(wrong) == [1.0]


def test_dice_is_of_the_images_that_show_a_class(data: ToyData) -> None:
    task = Segmentation(replace(data.spec, classes=("background", "one", "two")))
    true = torch.zeros(2, 1, 16, 16)
    true[0, 0, :4] = 1
    true[:, 0, 8:] = 2
    found = torch.nn.functional.one_hot(true[:, 0].long(), 3).movedim(-1, 1).float()
    outcomes = task.outcomes(found, true)
    assert outcomes[1].isnan().tolist() == [True, False]
    assert task.score(outcomes) == [1, 1, 1]
    half = true.clone()
    half[0, 0, :2] = 0
    found = torch.nn.functional.one_hot(half[:, 0].long(), 3).movedim(-1, 1).float()
    assert task.score(task.outcomes(found, true)) == pytest.approx([(2 / 3 + 1) / 2, 2 / 3, 1])
    assert float(task.loss(30 * found, half)) == pytest.approx(0, abs=1e-2)
    assert float(task.loss(torch.zeros_like(found), half)) > 1


def test_classifiers_see_means_and_segmenters_every_voxel() -> None:
    spec = DataSpec(2, (256, 256), (1.0, 1.0), attributes={"age": (0.0, 1.0)}, classes=("a", "b"))
    task = Number("age", spec)
    assert task.size == (128, 128)
    assert math.prod(task.size) <= MAX_VOXELS
    images = torch.rand(1, 2, 256, 256)
    torch.testing.assert_close(task.seen(images), torch.nn.functional.avg_pool2d(images, 2))
    assert task.network()(task.seen(images)).shape == (1, 1)
    assert Segmentation(spec).network()(images).shape == (1, 2, 256, 256)


@pytest.mark.parametrize("size", [(8, 8), (20, 17), (24, 16, 10), (18, 22, 19)])
def test_a_segmenter_keeps_the_size_and_learns_a_threshold(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network, images = ConvSegmenter(size, 1, 2, 4), torch.randn(4, 1, *size)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        logits = network(images)
        assert logits.shape == (4, 2, *size)
        loss = torch.nn.functional.cross_entropy(logits, (images[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


# Refusals.


def test_what_cannot_be_predicted_is_refused(data: ToyData) -> None:
    rows = data.copies().made_from
    assert names_of_tasks(rows, data.spec, True, None) == ["sex", "age", "height", "label_map"]
    assert names_of_tasks(rows, data.spec, False, ["age"]) == ["age"]
    with pytest.raises(InputError, match="--predict: no 'weight' in the data, which has sex, age, height, label_map"):
        names_of_tasks(rows, data.spec, True, ["weight"])
    with pytest.raises(InputError, match="not asked to show 'label_map', but sex, age, height"):
        names_of_tasks(rows, data.spec, False, ["label_map"])
    with pytest.raises(InputError, match="asked to show nothing"):
        names_of_tasks([{}, {"key": "train0"}], data.spec, False, None)


def test_one_value_and_too_few_are_refused_or_passed_over(data: ToyData) -> None:
    made = data.copies()
    with pytest.raises(InputError, match=r"height is 1.5 of all training people"):
        report_on(data, made, ["height"])
    women = Made(made.images, [{**row, "sex": 0.0} for row in made.made_from])
    with pytest.raises(InputError, match=r"sex has not two values.*samples: 0 x 48"):
        report_on(data, women, ["sex"])
    few = Made(Images.of(made.images.all()[:7]), made.made_from[:7])
    with pytest.raises(InputError, match="7 samples with a known age"):
        report_on(data, few, ["age"])
    with pytest.raises(InputError, match="height"):
        report_on(data, made, ["height"], skip=True)
    report = report_on(data, made, ["height", "sex"], Plan((1.0,), (1.0,), 1), replace(TRAINING, num_steps=1), True)
    assert list(report["tasks"]) == ["sex"]
    assert "height" in report["passed_over"]


def test_damaged_samples_are_no_unfit_task(data: ToyData) -> None:
    def read(_: Sequence[int]) -> Tensor:
        raise InputError("b.png: cut off.")

    made = data.copies()
    damaged = Made(Images(made.images.keys, made.images.people, read), made.made_from)
    with pytest.raises(InputError, match=r"b\.png") as refused:
        report_on(data, damaged, ["sex"], skip=True)
    assert not isinstance(refused.value, UnfitTaskError)


def test_nothing_is_said_of_networks_that_are_no_better_than_a_guess(of_copies: dict[str, Any]) -> None:
    report = deepcopy(of_copies)
    task = report["tasks"]["sex"]
    point = task["curve"][0]
    (added,) = point["added"]
    point["real"]["auc"]["ci95"], added["scores"]["auc"]["ci95"] = [0.2, 0.6], [0.3, 0.7]
    added["difference"]["auc"] = {"value": 0.1, "ci95": [0.05, 0.15]}
    task["curve"] = [point]
    words = f"{added['samples']} to {point['people']} people (+0.100)"
    assert f"no better than a guess: {words}" in verdict({"tasks": {"sex": task}})
    added["scores"]["auc"]["ci95"] = [0.55, 0.7]
    assert f"surely helps: {words}" in verdict({"tasks": {"sex": task}})


def test_too_few_people_are_refused(tmp_path: Path) -> None:
    small = ToyData(tmp_path, (12, 2, 7))
    with pytest.raises(InputError, match="7 test people; give at least 8: train with other data"):
        refuse_few(small)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="7 test people with a known sex"):
        report_on(small, small.copies(), ["sex"])


def test_label_maps_that_are_absent_do_not_count(tmp_path: Path) -> None:
    data = ToyData(tmp_path, (12, 2, 12))
    data.of["test"][1][:6] = ABSENT_CLASS
    with pytest.raises(InputError, match="6 test people with a known label_map"):
        report_on(data, data.copies(), ["label_map"])


def test_samples_made_like_unseen_people_are_refused(data: ToyData) -> None:
    for split in ("val", "test"):
        with pytest.raises(InputError, match=f"samples were made like {split} people"):
            owned(data.copies(split), data)  # type: ignore[arg-type]
    assert owned(data.copies(), data).images.people[3] == "train3"  # type: ignore[arg-type]


def test_samples_of_a_model_of_an_unknown_split_are_refused(data: ToyData) -> None:
    refuse_unknown_split(data.spec, "--samples s")
    for spec in (None, replace(data.spec, people={})):
        with pytest.raises(InputError, match="--samples s: nothing says on which people"):
            refuse_unknown_split(spec, "--samples s")


def test_images_too_small_for_the_networks_are_refused(data: ToyData) -> None:
    for size in ((7, 64), (9, 11)):
        with pytest.raises(InputError, match="too small"):
            Category("sex", replace(data.spec, size=size))


# The verb.


def test_a_command_without_samples_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["utility"]) == 2
    assert "or --samples DIR" in one_line(capsys)


@pytest.mark.slow
def test_the_verb(tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chests, samples, out = (tmp_path / name for name in ("chests", "samples", "utility"))
    words = ["--num_subjects", "40", "--size", "32", "--seed", "1"]
    assert main(["phantom", "chestxray", "--out", str(chests), *words]) == 0
    run = TinyRun(tmp_path / "run", phantoms, ("configs/vdm.yaml",))
    assert run.fit(f"--data.init_args.root={chests}", "--data.init_args.fractions=[0.5,0.1,0.4]") == 0
    assert run.on_checkpoint("sample", "--like=train", f"--out={samples}", "--audit=false") == 0
    brief = ["--num_steps=2", "--num_seeds=2", "--shares=[1]", "--batch_size=4", f"--out={out}"]
    cpu = "--trainer.accelerator=cpu"
    of_samples = ["utility", "--samples", str(samples), cpu, *brief]
    assert main([*of_samples, "--predict=[sex,age_years]"]) == 0
    first = json.loads((out / "report.json").read_text())
    assert list(first["tasks"]) == ["sex", "age_years"]
    assert first["method"] == "VDM"
    assert first["tasks"]["sex"]["equal"] == first["num_samples"] == first["tasks"]["sex"]["people"]["train"]
    assert run.on_checkpoint("utility", "--num=8", *brief, "--predict=sex") == 0
    assert json.loads((out / "report.json").read_text())["num_samples"] == 8

    capsys.readouterr()
    for more, words in (
        (["--data.init_args.seed=5"], "another split of people"),
        (["--predict=weight"], "--predict: no 'weight' in the data"),
        (["--shares=[0,1]"], "--shares is [0.0, 1.0]; give shares above 0"),
        (["--num_seeds=1"], "--num_seeds is 1; give 2 or more"),
    ):
        assert main([*of_samples, *more]) == 2
        assert words in one_line(capsys)
    (samples / "spec.json").unlink()
    assert main(of_samples) == 2
    assert "nothing says on which people" in one_line(capsys)
    assert json.loads((out / "report.json").read_text())["num_samples"] == 8  # nothing is lost
