"""Methods of the kinds that are still to come, each in one short file, all the way through the command line.

Each is fitted, resumed, asked for images by what they should show, and evaluated. None of them is known to any shared
file: what they need, the frame has for every method.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from test_resume import assert_equal, losses
from tiny_run import ROOT, one_line
from toys.data import CLASSES, SIZE, SPACING_MM, Heads, Marked, affine, write_heads

import lit_medgen
from data_modules import Crop
from lit_medgen.__main__ import main
from lit_medgen.batch import Request
from lit_medgen.images.nifti import write_nifti

TOYS = ROOT / "tests" / "toys"
MAX_LINES = 60
CROP = [12, 8, 7]
HERE, ELSEWHERE = affine(SPACING_MM, -70.0), affine(SPACING_MM, 30.0)


class Toy:
    """A toy method in a folder of its own, on the heads of all."""

    def __init__(self, folder: Path, heads: Path, model: str, *options: str) -> None:
        self.folder, self.model = folder, f"--model=toys.{model}"
        self.words = ["--config=tests/toys/experiment.yaml", "--trust_config", self.model, *options]
        self.words += [f"--data.init_args.root={heads}", f"--data.init_args.store_dir={heads.with_name('store')}"]
        self.words += [f"--trainer.default_root_dir={folder}"]

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "run" / "checkpoints" / "last.ckpt"

    def fit(self, *steps: int) -> Toy:
        """Fits up to the first number of steps, and resumes up to each of the others."""
        for number in steps:
            assert main(["fit", *self.words, f"--trainer.max_steps={number}", "--ckpt_path=last"]) == 0
        return self

    def on_checkpoint(self, verb: str, *words: Any) -> int:
        """Runs a verb on the newest checkpoint, without any config."""
        return main([verb, f"--ckpt_path={self.last}", "--trust_config", "--trainer.accelerator=cpu", *map(str, words)])

    def sample(self, *words: Any) -> tuple[list[np.ndarray], list[np.ndarray], list[dict[str, Any]]]:
        """Voxels and affine of each image, and what the manifest says that it was made from."""
        out = self.folder / "samples"
        assert self.on_checkpoint("sample", f"--out={out}", *words) == 0
        with (out / "manifest.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        images: list[Any] = [nib.load(out / row["file"]) for row in rows]
        made_from = [json.loads(row["condition"] or "{}") for row in rows]
        return [image.get_fdata() for image in images], [image.affine for image in images], made_from

    def evaluate(self) -> dict[str, Any]:
        """The report, which says that all is there."""
        out = self.folder / "report"
        assert self.on_checkpoint("evaluate", f"--out={out}", "--features=none", "--batch_size=8") == 0
        report: dict[str, Any] = json.loads((out / "report.json").read_text())
        assert report["method"] == self.model.rpartition(".")[2]
        assert (out / "report.md").read_text().endswith(f"{report['verdict']}\n")
        return report

    def load(self) -> Any:
        """The trained method."""
        return lit_medgen.load(self.last, trust="toys")

    def moved(self) -> set[str]:
        """Submodules whose weights changed between the first and the last step."""
        first = self.last.with_name("step_0000001.ckpt")
        before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (first, self.last))
        return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw data of a few people."""
    root = tmp_path_factory.mktemp("heads") / "raw"
    write_heads(root, 10)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the toys of this file run."""
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="module")
def painter(folder: Path, heads: Path) -> Toy:
    return Toy(folder / "painter", heads, "Painter").fit(2, 3)


@pytest.fixture(scope="module")
def translator(folder: Path, heads: Path) -> Toy:
    return Toy(folder / "translator", heads, "Translator").fit(2, 3)


@pytest.fixture(scope="module")
def portrait(folder: Path, heads: Path) -> Toy:
    return Toy(folder / "portrait", heads, "Portrait").fit(2, 3)


@pytest.fixture(scope="module")
def classifier(folder: Path, heads: Path) -> Toy:
    return Toy(folder / "classifier", heads, "SexClassifier", "--trainer.callbacks+=lit_medgen.callbacks.Report").fit(
        2, 3
    )


def write_maps(folder: Path, size: Sequence[int] = (SIZE,) * 3, lesion: int = CLASSES.index("lesion")) -> Path:
    """Three label maps, `a` and `c` alike, of `b` with a lesion; each lies elsewhere."""
    folder.mkdir()
    for name, matrix in (("a", HERE), ("b", ELSEWHERE), ("c", ELSEWHERE)):
        classes = np.ones(size, dtype=np.float32)
        classes[2:5] = lesion if name == "b" else 1
        write_nifti(folder / f"{name}.nii.gz", classes, matrix)
    return folder


def write_sources(folder: Path, size: int = SIZE // 2, channels: Sequence[str] = ("flair", "t2")) -> Path:
    """Three coarse sources, `a` and `c` alike, each a folder of channels."""
    for name, values in (("a", (20, 80)), ("b", (70, 30)), ("c", (20, 80))):
        (folder / name).mkdir(parents=True)
        for channel, value in zip(channels, values, strict=False):
            write_nifti(folder / name / f"{channel}.nii.gz", np.full((size,) * 3, value, dtype=np.float32), HERE)
    return folder


def classes_in(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]


def test_each_toy_is_short_and_unknown_to_shared_files() -> None:
    files = [path for path in TOYS.glob("*.py") if path.stem not in ("__init__", "data")]
    toys = {node.name: node.end_lineno - node.lineno + 1 for path in files for node in classes_in(path)}  # type: ignore[operator]
    assert len(files) == 8
    assert {name: num for name, num in toys.items() if num >= MAX_LINES} == {}
    shared = [path for package in ("lit_medgen", "data_modules") for path in (ROOT / package).rglob("*.py")]
    assert [path for path in shared if "toys" in path.read_text()] == []


def test_made_from_a_label_map(painter: Toy, tmp_path: Path) -> None:
    assert painter.moved() == {"network"}
    images, affines, made_from = painter.sample("--label_maps", write_maps(tmp_path / "maps"), "--seeds=5")
    assert made_from == [{"label_map": f"{name}.nii.gz"} for name in "abc"]
    np.testing.assert_array_equal(images[0], images[2])
    assert np.abs(images[0] - images[1])[2:5].mean() > np.abs(images[0] - images[1])[6:].mean()
    np.testing.assert_allclose(affines, [HERE, ELSEWHERE, ELSEWHERE])
    out, folder = tmp_path / "report", painter.folder / "samples"
    assert main(["evaluate", f"--samples={folder}", "--trust_config", f"--out={out}", "--features=none"]) == 0
    assert "pairs" not in json.loads((out / "report.json").read_text())  # nobody's images are known to compare with
    report = painter.evaluate()
    assert {"psnr", "ssim", "ms_ssim"} <= report["pairs"].keys()
    assert report["pairs"]["psnr"]["num_pairs"] == report["num_samples"] == report["people"]["test"][0] == 4


def test_made_from_a_source_of_another_size_with_two_channels(translator: Toy, tmp_path: Path) -> None:
    images, _, made_from = translator.sample("--sources", write_sources(tmp_path / "sources"), "--seeds=5")
    assert made_from == [{"source": name} for name in "abc"]
    np.testing.assert_array_equal(images[0], images[2])
    assert np.abs(images[0] - images[1]).mean() > 0.1
    assert images[0].shape == (SIZE,) * 3
    names = [path.name for path in (translator.folder / "samples").glob("*.nii.gz")]
    assert all(name.startswith("reconstruction") for name in names)
    assert translator.evaluate()["pairs"]["psnr"]["num_pairs"] == 4


def test_the_data_itself_can_be_asked_for(translator: Toy, heads: Path) -> None:
    _, affines, made_from = translator.sample("--like=test", "--num=3")
    people = {float(nib.load(path).affine[0, 3]) for path in heads.glob("*/image.nii.gz")}  # type: ignore[attr-defined]
    assert {float(matrix[0, 3]) for matrix in affines} <= people
    assert len({row["key"] for row in made_from}) == 3


def test_made_from_partly_given_attributes(portrait: Toy, tmp_path: Path) -> None:
    low, high = portrait.load().spec.attributes["age_years"]
    table = tmp_path / "requests.csv"
    table.write_text(f"seed,age_years,sex\n5,{low},\n5,{low},1\n5,{high},\n5,{low},\n5,,\n")
    images, _, made_from = portrait.sample("--requests", table)
    young = {"age_years": low}
    assert made_from == [young, young | {"sex": 1}, {"age_years": high}, young, {}]
    np.testing.assert_array_equal(images[0], images[3])
    for other in (1, 2, 4):
        assert np.abs(images[0] - images[other]).max() > 1e-3
    alone, _, made_from = portrait.sample("--attributes", json.dumps(young), "--seeds=[5, 6]")
    assert made_from == [young] * 2
    np.testing.assert_allclose(alone[0], images[0], atol=1e-4)
    unasked, _, made_from = portrait.sample("--seeds=5")
    assert made_from == [{}]
    np.testing.assert_allclose(unasked[0], images[4], atol=1e-4)
    report = portrait.evaluate()
    pictures = {path.name for path in (portrait.folder / "report" / "attributes").glob("*.png")}
    assert pictures == {"age_years.png", "sex.png"}
    assert "pairs" not in report
    assert report["metrics"]


def test_on_a_frozen_part_that_holds_one(folder: Path, heads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coder = Toy(folder / "coder", heads, "Coder").fit(2)
    prior = Toy(folder / "prior", heads, "Prior", f"--model.init_args.first={coder.last}").fit(2, 3)
    words = ("Refiner", f"--model.init_args.base={prior.last}")
    straight, resumed = Toy(folder / "straight", heads, *words).fit(4), Toy(folder / "refiner", heads, *words).fit(2)
    coder.evaluate()
    for part in (coder, prior):
        part.folder.rename(part.folder.with_name(f"{part.folder.name}_gone"))
    assert_same_run(straight, resumed.fit(4))
    model = resumed.load()
    assert_equal(dict(model.base.first.state_dict()), dict(straight.load().base.first.state_dict()))
    images, affines, _ = resumed.sample("--seeds=[1, 2]")
    assert np.abs(images[0] - images[1]).max() > 1e-3
    np.testing.assert_allclose(affines[0], model.spec.affine())
    assert resumed.evaluate()["network_evaluations"] == 1
    assert main(["fit", *Toy(folder / "anew", heads, *words).words]) == 2
    assert str(prior.last) in (line := one_line(capsys))
    assert "fit --model toys.Prior" in line


def test_three_players_with_different_periods(folder: Path, heads: Path) -> None:
    straight, resumed = (Toy(folder / name, heads, "Trio") for name in ("trio", "trio_resumed"))
    assert_same_run(straight.fit(4), resumed.fit(2, 4))
    assert straight.moved() == {"network", "discriminator", "encoder"}
    updates = [len(state["state"]) and int(state["state"][0]["step"]) for state in optimizers(straight)]
    assert updates == [4, 2, 1]
    images, _, _ = straight.sample("--num=2")
    assert np.abs(images[0] - images[1]).max() > 1e-3
    assert straight.evaluate()["metrics"]


def test_a_classifier_makes_no_image(classifier: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    report = classifier.evaluate()
    assert 0 <= report["own"]["auc_sex"]["value"] <= 1
    assert report["own"]["auc_sex"]["num"] == 4
    assert not {"metrics", "pairs", "nulls", "num_samples"} & report.keys()
    after_training = json.loads((classifier.folder / "run" / "report" / "report.json").read_text())
    assert after_training["own"] == report["own"]
    logged = (classifier.folder / "run" / "metrics.csv").read_text()
    assert "own.auc_sex.value" in logged
    classifier.fit(3)  # the run is finished: nothing to do, nothing to lose
    assert (classifier.folder / "run" / "metrics.csv").read_text() == logged
    assert classifier.on_checkpoint("sample") == 2
    assert "SexClassifier makes no images" in one_line(capsys)


def test_a_view_of_crops(folder: Path, heads: Path, tmp_path: Path) -> None:
    crop = yaml.safe_dump({"class_path": "data_modules.Crop", "init_args": {"size": CROP, "centre": "lesion"}})
    options = (f"--data.init_args.view={crop}", "--data.init_args.preprocessing.source_size=[8, 8, 8]")
    patch, painter, translator = (
        Toy(folder / f"crop_{model}", heads, model, *options).fit(2, 3) for model in ("Patch", "Painter", "Translator")
    )
    images, _, _ = patch.sample("--num=2")
    assert [image.shape for image in images] == [tuple(CROP)] * 2
    assert "pairs" not in patch.evaluate()
    images, affines, _ = painter.sample("--label_maps", write_maps(tmp_path / "maps", CROP))
    assert images[0].shape == tuple(CROP)
    np.testing.assert_allclose(affines[0], HERE)
    assert painter.evaluate()["pairs"]["psnr"]["num_pairs"] == 4
    _, affines, made_from = translator.sample("--like=test")
    for matrix, row, request in zip(affines, made_from, crops_of(translator, heads), strict=True):
        assert request.affine is not None
        np.testing.assert_allclose(matrix, request.affine[0])
        assert row["key"] == request.key[0]


def refused(code: int, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Whether a command ended with one line that has these words."""
    assert code == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line


def test_label_maps_that_do_not_fit(painter: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown, small = write_maps(tmp_path / "unknown", lesion=3), write_maps(tmp_path / "small", (8, 8, 6))
    for folder, words in (
        (unknown, ("b.nii.gz", "classes 3", "air; head; lesion")),
        (small, ("(8, 8, 6)", "(8, 8, 8)")),
    ):
        refused(painter.on_checkpoint("sample", f"--label_maps={folder}"), capsys, *words)
    more = [f"--label_maps={small}", f"--sources={write_sources(tmp_path / 'sources')}"]
    refused(painter.on_checkpoint("sample", *more), capsys, "--sources", "not from source images")
    refused(painter.on_checkpoint("sample", "--attributes", '{"sex": 1}'), capsys, "Painter is not made from 'sex'")
    other = "--data.init_args.preprocessing.classes=[air, head, brain, lesion]"
    for verb in ("evaluate", "sample"):
        refused(
            painter.on_checkpoint(verb, other, f"--out={tmp_path / 'out'}"), capsys, "classes", "'brain'", "trained on"
        )


def test_sources_that_do_not_fit(translator: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single, large = write_sources(tmp_path / "single", channels=["t2"]), write_sources(tmp_path / "large", SIZE)
    for folder, words in ((single, ("files t2;", "t2, flair")), (large, ("(8, 8, 8)", "expected (4, 4, 4)"))):
        refused(translator.on_checkpoint("sample", f"--sources={folder}"), capsys, str(folder / "a"), *words)
    other = "--data.init_args.preprocessing.source_size=[8, 8, 8]"
    for verb in ("evaluate", "sample"):
        words = (verb, other, f"--out={tmp_path / 'out'}", *(["--like=test"] if verb == "sample" else []))
        refused(translator.on_checkpoint(*words), capsys, "source_size (4, 4, 4)", "(8, 8, 8)", "trained on")


def test_data_without_what_images_are_made_from(folder: Path, heads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, options, words in (
        (
            "Painter",
            ["--data.init_args.preprocessing.classes=[]"],
            ("no label maps", "Painter", "preprocessing.classes"),
        ),
        ("Translator", ["--data.init_args.preprocessing.sources=[t2]"], ("num_channels is 2", "the sources have 1")),
        (
            "Portrait",
            ["--data.init_args.known=[age_years]"],
            ("Portrait", "no 'sex' in the data, which has 'age_years'"),
        ),
        ("SexClassifier", ["--data.init_args.known=[age_years]"], ("'sex' is no attribute",)),
    ):
        refused(main(["fit", *Toy(folder / "without", heads, model, *options).words]), capsys, *words)


def crops_of(toy: Toy, heads: Path) -> list[Request]:
    """What the crops of test people are made from, each compared with the raw files of its person."""
    arguments = toy.load().config["data"]["init_args"]
    steps = {
        name: tuple(value) if isinstance(value, list) else value for name, value in arguments["preprocessing"].items()
    }
    data = Heads(**arguments | {"preprocessing": Marked(**steps), "view": Crop(tuple(CROP), "lesion")})
    data.setup("test")
    requests = data.requests("test")
    crops = [requests.read(index) for index in range(len(requests))]
    for request in crops:
        assert request.affine is not None
        assert request.target is not None
        assert request.condition.label_map is not None
        assert request.condition.source is not None
        assert request.condition.source.shape == (1, 2, *CROP)
        corner = request.affine[0, 0, 3].item() - SPACING_MM / 2  # that of person k is at -40 - k
        folder = heads / f"person_{round(-corner) % round(SPACING_MM)}"
        classes, image = (nib.load(folder / f"{name}.nii.gz") for name in ("label_map", "image"))  # type: ignore[attr-defined]
        first = np.rint((request.affine[0, :3, 3].numpy() - image.affine[:3, 3]) / SPACING_MM).astype(int)
        box = tuple(slice(start + 16, start + 16 + side) for start, side in zip(first, CROP, strict=True))
        expected, padded = np.pad(classes.get_fdata(), 16)[box], np.pad(image.get_fdata(), 16)[box]
        np.testing.assert_array_equal(request.condition.label_map[0, 0], expected)
        np.testing.assert_allclose(request.target[0, 0], padded / 50 - 1, atol=2e-3)
        assert (request.target[0, 0, -1] == -1).all() or (request.target[0, 0, 0] == -1).all()
        assert expected[CROP[0] // 2, CROP[1] // 2, CROP[2] // 2] == CLASSES.index("lesion")
    return crops


def optimizers(toy: Toy) -> list[dict[str, Any]]:
    states: list[dict[str, Any]] = torch.load(toy.last, weights_only=True)["optimizer_states"]
    return states


def assert_same_run(straight: Toy, resumed: Toy) -> None:
    """Two runs ended bit-equal, and logged the same losses."""
    a, b = (torch.load(toy.last, weights_only=True) for toy in (straight, resumed))
    for part in ("state_dict", "callbacks", "optimizer_states", "lr_schedulers", "loops"):
        assert_equal(a[part], b[part])
    assert losses(straight.folder) == losses(resumed.folder)
