"""`compare`: who is best by which rule, what is refused, and tables that say the same in three formats."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluation import SPEC, People, evaluate, heads

from lit_medgen.__main__ import main
from lit_medgen.batch import Images
from lit_medgen.errors import InputError
from lit_medgen.evaluation import figures
from lit_medgen.evaluation.compare import FILES, read_reports, run_compare
from lit_medgen.evaluation.pictures import (
    MAX_BYTES,
    MAX_COORDINATES,
    MAX_POINTS,
    NUM_IMAGES,
    Pictures,
    pictures_of,
    read_pictures,
    write_pictures,
)
from lit_medgen.evaluation.ranked import Row, best_of, rows_of, table_of
from lit_medgen.evaluation.reference import reference_of
from lit_medgen.evaluation.report import Maker
from lit_medgen.evaluation.scores import PAIRS, SCORES, Given
from lit_medgen.evaluation.tables import (
    MAX_COLUMNS,
    as_comma_separated,
    as_latex,
    as_markdown,
    escaped,
    literal,
    parts_of,
)
from lit_medgen.images.comparisons import save_compared, save_trajectories
from lit_medgen.images.plots import in_two_dimensions
from lit_medgen.metrics.base import Best
from lit_medgen.metrics.known import Known
from lit_medgen.people import sum_of

Scores = dict[str, tuple[float, float, float]]
BEST: dict[str, Best] = {"frechet_image": "lower", "recall": "higher", "sharpness": "real"}
REAL = {"frechet_image": 1.0, "recall": 0.9, "sharpness": 1.0}
"""Value of real images."""

KINDS = ("samples", "nearest", "unseen")
REFERENCE = {
    "part": "test",
    "size": [8, 8],
    "fold": "",
    "cohort": "0",
    "people": {"train": "1", "test": "2"},
    "images": {"train": "1", "test": "2"},
}


def report_of(scores: Scores, **more: Any) -> dict[str, Any]:
    """What a report says of a model with these scores: value, low and high end."""
    metrics = {
        name: {
            "value": value,
            "ci95": [low, high],
            "real_vs_real": REAL[name],
            "features": "voxels",
            "best": BEST[name],
        }
        for name, (value, low, high) in scores.items()
    }
    return {
        "name": "a",
        "source": "a.ckpt",
        "method": "A",
        "data": "0" * 64,
        "reference": REFERENCE,
        "features": "voxels",
        "num_samples": 16,
        "network_evaluations": 20,
        "parameters": 1234567,
        "seconds_per_image": 0.25,
        "metrics": metrics,
        "nulls": {"noise": dict.fromkeys(scores, 7.0)},
        "own": {},
    } | more


def pictures(seed: int = 0, num_frames: int = 3) -> Pictures:
    """Small images and points of three kinds."""
    random = np.random.default_rng(seed)
    images = [random.integers(0, 256, (num, 8, 8), np.uint8) for num in (3, 3, num_frames)]
    return Pictures(*images, *(random.normal(size=(12, 4)).astype(np.float32) for _ in range(3)))


def written(folder: Path, report: dict[str, Any], shown: Pictures | None = None) -> str:
    """The folder of a report that holds this."""
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    write_pictures(folder, shown or pictures())
    return str(folder)


GOOD: Scores = {"frechet_image": (2.0, 1.5, 2.5), "recall": (0.8, 0.7, 0.9), "sharpness": (1.1, 1.05, 1.15)}


def with_best(*names: str, **scores: dict[str, tuple[float, float, float]]) -> None:
    """Asserts which models are in bold, as model.score."""
    table = table_of({name: report_of(of_model) for name, of_model in scores.items()})
    bold = {f"{line.name}.{score}" for line in table.lines for score, cell in line.cells.items() if cell.best}
    assert bold == set(names)


def test_a_model_is_best_if_its_interval_meets_no_other() -> None:
    far = {"frechet_image": (4.0, 3.0, 5.0)}
    with_best("a.frechet_image", a=GOOD, b=far)
    with_best(a=GOOD, b={"frechet_image": (4.0, 2.5, 5.0)})  # they touch
    with_best(a=GOOD, b=far, c={"frechet_image": (9.0, 2.0, 16.0)})  # the next one is apart, the last is not
    with_best(a=GOOD)  # alone, it beats nobody
    with_best("b.recall", a=GOOD, b={"recall": (0.95, 0.91, 1.0)})
    with_best("a.sharpness", a={"sharpness": (1.1, 1.05, 1.15)}, b={"sharpness": (0.7, 0.6, 0.8)})


def test_on_either_side_of_real_images_the_distance_counts() -> None:
    above, below = Row(1.1, (1.05, 1.15), "real", 1.0, ""), Row(0.88, (0.82, 0.94), "real", 1.0, "")
    assert best_of({"above": above, "below": below}) == ("above", ["below"])
    around = Row(1.02, (0.9, 1.14), "real", 1.0, "")  # its distance reaches from 0 to 0.14
    assert best_of({"around": around, "above": above}) == ("around", ["above"])


@pytest.mark.usefixtures("fine_figures")
def test_figures_take_scores_without_ends(tmp_path: Path) -> None:
    """A PSNR of equal images is infinite, and has no interval."""
    points = {"a": (math.inf, -math.inf, math.inf, math.nan), "b": (0.0, 0.0, 0.0, 0.0)}
    save_compared(tmp_path / "scores.png", [{"title": "psnr", "points": points, "best": []}])
    assert (tmp_path / "scores.png").stat().st_size > 1000


@pytest.mark.parametrize("name", [r"$\frac{$", "x" * 300, "\N{GRINNING FACE}"], ids=["formula", "long", "face"])
@pytest.mark.filterwarnings("error")
def test_figures_take_every_name(name: str, tmp_path: Path) -> None:
    """No formula, no name that leaves no room for its picture, no warning of a font without its characters."""
    save_trajectories(tmp_path / "trajectory.png", {name: np.zeros((3, 8, 8), np.uint8)})
    with Image.open(tmp_path / "trajectory.png") as image:
        assert image.width < 1000


def test_an_interval_without_ends_meets_all_others() -> None:
    scores: Scores = {"frechet_image": (2.0, float("nan"), float("nan"))}
    with_best(a=scores, b={"frechet_image": (4.0, 3.0, 5.0)})


@pytest.mark.parametrize("change", [{"features": "other borders"}, {"best": "higher"}])
def test_scores_of_other_features_are_not_ranked(change: dict[str, str]) -> None:
    a, b = report_of(GOOD), report_of({"frechet_image": (4.0, 3.0, 5.0)})
    b["metrics"]["frechet_image"] |= change
    table = table_of({"a": a, "b": b})
    assert table.remarks == ["frechet_image: not ranked, computed from different things"]


def test_scores_without_a_value_of_real_images_are_not_ranked_by_it() -> None:
    a, b = report_of(GOOD), report_of({"sharpness": (4.0, 3.0, 5.0)})
    for report, value in ((a, math.nan), (b, None)):
        report["metrics"]["sharpness"]["real_vs_real"] = value
    assert table_of({"a": a, "b": b}).remarks == []


def test_images_of_targets_are_ranked_apart_from_new_people() -> None:
    """Reconstructions are nearer to real people than any people of a model's own."""
    near, far = {"frechet_image": (0.1, 0.1, 0.2)}, {"frechet_image": (4.0, 3.0, 5.0)}
    pairs = {"ssim": report_of(GOOD)["metrics"]["recall"]}
    models = {"vqgan": report_of(near, pairs=pairs), "ihdm": report_of(GOOD), "wgan": report_of(far)}
    assert table_of(models).remarks == ["frechet_image: ihdm best"]


def test_folds_are_ranked_apart_and_have_their_own_real_images() -> None:
    """The best of another fold was tested on other people: it is beaten by nobody here."""
    values = {"a_fold0": 2.0, "b_fold0": 4.0, "a_fold1": 20.0, "b_fold1": 40.0}
    reports = {
        name: report_of({"frechet_image": (value, 0.9 * value, 1.1 * value)})
        | {"reference": REFERENCE | {"people": {"test": name[-1]}, "fold": f"{name[-1]} of 2"}}
        for name, value in values.items()
    }
    table = table_of(reports)
    assert [line.name for line in table.lines if any(cell.best for cell in line.cells.values())] == [
        "a_fold0",
        "a_fold1",
    ]
    assert [line.name for line in table.lines if line.kind == "real"] == [
        "real vs real, fold 0 of 2",
        "real vs real, fold 1 of 2",
    ]
    assert "(fold 1 of 2)" in table.remarks[1]


def test_what_models_do_not_share_is_no_reference() -> None:
    a, b = report_of(GOOD), report_of(GOOD)
    b["metrics"]["recall"]["real_vs_real"] = 0.7
    b["metrics"]["sharpness"]["real_vs_real"] = 1.0000001  # rounded by another machine
    b["nulls"]["noise"]["recall"] = 3.0
    b["nulls"]["prior"] = a["nulls"]["noise"]  # of one model alone
    lines = {line.name: line.cells.keys() for line in table_of({"a": a, "b": b}).lines if line.kind != "model"}
    assert lines == {name: {"frechet_image", "sharpness"} for name in ("real vs real", "null: noise")}


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    worse: Scores = {"frechet_image": (4.0, 3.0, 5.0), "sharpness": (1.12, 1.0, 1.2)}
    table = table_of({"a": report_of(GOOD), "b|_%": report_of(worse, seconds_per_image=None)})
    scores, costs = as_markdown(table)
    assert scores[0] == "| model | frechet_image ↓ | recall ↑ | sharpness → real |"
    assert scores[2] == "| a | **2** (1.5 to 2.5) | 0.8 (0.7 to 0.9) | 1.1 (1.05 to 1.15) |"
    assert scores[3] == r"| b\|\_% | 4 (3 to 5) |  | 1.12 (1 to 1.2) |"
    assert scores[4:] == ["| real vs real | 1 | 0.9 | 1 |", "| null: noise | 7 | 7 | 7 |"]
    assert costs[2:] == ["| a | 20 | 1,234,567 | 0.25 |", r"| b\|\_% | 20 | 1,234,567 |  |"]
    a, b, real, null = csv.DictReader(as_comma_separated(table).splitlines())
    assert [a[f"frechet_image{end}"] for end in ("", ".low", ".high", ".best")] == ["2.0", "1.5", "2.5", "1"]
    assert (b["name"], b["recall"], b["seconds per image"], b["frechet_image.best"]) == ("b|_%", "", "", "0")
    assert (real["kind"], real["recall"], null["kind"], null["recall"]) == ("real", "0.9", "null", "7.0")
    text = as_latex(table)
    assert r"frechet\_image $\downarrow$ & recall $\uparrow$ & sharpness $\to$ real \\" in text
    assert r"a & \textbf{2} {\scriptsize (1.5 to 2.5)} & 0.8" in text
    assert r"b\textbar{}\_\% & 4 {\scriptsize (3 to 5)} &  & 1.12" in text
    assert text.count(r"\textbf") == 1
    rules = (r"\toprule", r"\midrule", r"\bottomrule")
    assert [text.count(rule) for rule in rules] == [2, 3, 2]  # real images and nulls below a rule of their own
    for row in text.splitlines():
        if row.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", row)) == 3
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))


def test_latex_prints_numbers_as_papers_do() -> None:
    scores: Scores = {"frechet_image": (-2e-7, -math.inf, 1.5)}
    text = as_latex(table_of({"a": report_of(scores)}))
    assert r"$-$2$\times10^{-7}$ {\scriptsize ($-$$\infty$ to 1.5)}" in text


def test_latex_prints_every_character_as_it_is() -> None:
    assert escaped("a_b & 5% of $x^2 {~} #\\") == (
        r"a\_b \& 5\% of \$x\textasciicircum{}2 \{\textasciitilde{}\} \#\textbackslash{}"
    )
    assert escaped("[a]* --- <b>|") == r"{[}a{]}{*} -{}-{}- \textless{}b\textgreater{}\textbar{}"


@pytest.mark.parametrize(
    "text", ["a|b", "x\\|y", "**x**", "<b>", "`x`", "[x](y)", "_x_", "$x$", "~~x~~", "# x", "&lt;"]
)
def test_markdown_shows_every_character_as_it_is(text: str) -> None:
    """With each mark escaped, and nothing else changed."""
    shown = literal(text)
    assert re.sub(r"\\(.)", r"\1", shown) == text
    assert not re.search(r"(?<!\\)(\\\\)*[|*<`$~\[]", shown)
    assert literal("cdpm_fold0 (5 steps), 2.5 %") == "cdpm_fold0 (5 steps), 2.5 %"


@pytest.mark.parametrize("num", [0, 1, 5, 6, 18, 23])
def test_parts_hold_every_score_once(num: int) -> None:
    scores = [str(i) for i in range(num)]
    parts = parts_of(scores)
    assert [score for part in parts for score in part] == scores
    assert all(0 < len(part) <= MAX_COLUMNS for part in parts)
    assert max(map(len, parts), default=0) - min(map(len, parts), default=0) <= 1


def differing(key: str, value: Any) -> dict[str, Any]:
    """A report that differs from another in one thing."""
    report = report_of(GOOD, name="b")
    return report | ({"reference": REFERENCE | {key: value}} if key in REFERENCE else {key: value})


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("cohort", "1", "0, 1; these are other people"),
        ("images", {"train": "1", "test": "3"}, r"\{'train': '1', 'test': '2'\}, .*same preprocessing"),
        ("part", "val", "test, val"),
        ("size", [16, 16], r"\[8, 8\], \[16, 16\]"),
        ("people", {"train": "1", "test": "3"}, r"\{.*'test': '2'\}, \{.*'test': '3'\}"),
        ("features", "inception.pt", "voxels, inception.pt"),
        ("num_samples", 8, "16, 8"),
    ],
)
def test_reports_that_differ_are_refused(key: str, value: Any, shown: str, tmp_path: Path) -> None:
    folders = [written(tmp_path / "a", report_of(GOOD)), written(tmp_path / "b", differing(key, value))]
    with pytest.raises(InputError, match=rf"a \({folders[0]}\) and b \({folders[1]}\) differ in {key}: {shown}"):
        run_compare(folders, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def fold(number: int, name: str, test: str, cohort: str = "0", **more: Any) -> dict[str, Any]:
    """A report of a fold, tested on these people."""
    here = {"train": "1", "test": test}
    changes = {"people": here, "images": here, "fold": f"{number} of 2", "cohort": cohort}
    return report_of(GOOD, name=name, reference=REFERENCE | changes, **more)


def test_folds_are_of_other_people_of_the_same_cohort(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", fold(0, "a", "2")), written(tmp_path / "b", fold(1, "b", "3", num_samples=15))
    assert list(read_reports([a, b])) == ["a", "b"]
    other = written(tmp_path / "c", fold(1, "c", "4", num_samples=15))
    with pytest.raises(InputError, match=r"b .* and c .* differ in people"):  # of one fold
        read_reports([a, b, other])
    with pytest.raises(InputError, match=r"a .* and d .* differ in cohort"):
        read_reports([a, written(tmp_path / "d", fold(1, "d", "3", cohort="1"))])


def test_names_are_those_of_the_runs_and_never_alike(tmp_path: Path) -> None:
    a, b = (written(tmp_path / name / "report", report_of(GOOD)) for name in ("one", "two"))
    with pytest.raises(InputError, match=rf"{a}, {b} have the same name, 'a'; give each its own with --names"):
        read_reports([a, b])
    for name in ("", "real", "real vs real", "null: noise"):
        with pytest.raises(InputError, match=f"{a} has the name '{name}', which no model can have; give --names"):
            read_reports([a, b], [name, "x"])
    with pytest.raises(InputError, match="1 names for 2 reports"):
        read_reports([a, b], ["x"])
    models = read_reports([str(Path(a).parent), b], ["cdpm_fold2", "x"])  # a run folder has its report inside
    assert {name: str(one.folder) for name, one in models.items()} == {"cdpm_fold2": a, "x": b}


def edited(key: str) -> Callable[[Path], object]:
    """Takes a key out of report.json."""

    def change(folder: Path) -> None:
        report = json.loads((folder / "report.json").read_text())
        del report[key]
        (folder / "report.json").write_text(json.dumps(report))

    return change


def says(value: Any, *keys: str) -> Callable[[Path], object]:
    """Gives a key of report.json, below others, another value."""

    def change(folder: Path) -> None:
        report = json.loads((folder / "report.json").read_text())
        *above, last = keys
        reduce(getitem, above, report)[last] = value
        (folder / "report.json").write_text(json.dumps(report))

    return change


def shows(**arrays: np.ndarray) -> Callable[[Path], object]:
    """Gives compared.npz other arrays."""
    return lambda folder: write_pictures(folder, pictures()._replace(**arrays))


def as_npy(array: np.ndarray) -> bytes:
    """An array as the file of one."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no report": (lambda folder: (folder / "report.json").unlink(), "report.json: not there; give a folder"),
    "no pictures": (
        lambda folder: (folder / "compared.npz").unlink(),
        "compared.npz: not there; .*run `evaluate` again",
    ),
    "older": (edited("reference"), "lacks reference .*run `evaluate` again"),
    "older scores": (
        lambda folder: (folder / "report.json").write_text(
            (folder / "report.json").read_text().replace('"best"', '"worst"')
        ),
        "not as `evaluate` writes it .*run `evaluate` again",
    ),
    "no images": (edited("metrics"), "of A, which makes no images"),
    "no JSON": (lambda folder: (folder / "report.json").write_text("{"), "cannot be read .*run `evaluate` again"),
    "a list": (lambda folder: (folder / "report.json").write_text("[]"), "lacks name"),
    "half an archive": (
        lambda folder: (folder / "compared.npz").write_bytes((folder / "compared.npz").read_bytes()[:200]),
        "compared.npz: cannot be read .*run `evaluate` again",
    ),
    "a pickle": (
        lambda folder: np.savez(
            folder / "compared.npz", **pictures()._asdict() | {"samples": np.array([{}], dtype=object)}
        ),
        "compared.npz: cannot be read .*run `evaluate` again",
    ),
    "other arrays": (
        lambda folder: np.savez(folder / "compared.npz", **pictures()._asdict() | {"real": np.zeros((1, 2))}),
        r"compared.npz: real is float64 of shape \(1, 2\), expected 3 axes of uint8",
    ),
    "one array": (
        lambda folder: (folder / "compared.npz").write_bytes(as_npy(np.zeros(3))),
        r"compared.npz: cannot be read \(one array, expected an archive\)",
    ),
    "no samples": (shows(samples=np.zeros((0, 8, 8), np.uint8)), "samples is .* expected one row at least"),
    "planes of two sizes": (
        shows(trajectory=np.zeros((3, 9, 4), np.uint8)),
        r"trajectory is .* of shape \(3, 9, 4\), expected \(8, 8\) after the first axis",
    ),
    "points of two spaces": (
        shows(points_unseen=np.zeros((12, 7), np.float32)),
        r"points_unseen is .*, expected \(4,\) after the first axis",
    ),
    "points nowhere": (
        shows(points_nearest=np.full((12, 4), np.nan, np.float32)),
        "points_nearest has values that are not finite",
    ),
    "in the file": (
        lambda folder: (folder.rename(folder.with_name("c")), folder.write_text("")),
        "report.json: not there",
    ),
    "too deep": (lambda folder: (folder / "report.json").write_text("[" * 100_000), "cannot be read .*recursion"),
    "nothing measured": (says({}, "metrics"), "none of its scores was measured"),
    **{
        f"{'.'.join(map(str, keys))} is {value}": (
            says(value, *keys),
            re.escape(f"not as `evaluate` writes it ({'.'.join(keys)} is {value!r}, expected {expected}"),
        )
        for value, expected, *keys in (
            (7, "a text", "name"),
            (None, "a text", "reference", "fold"),
            (8, "two or three whole numbers", "reference", "size"),
            (["1"], "an object", "reference", "images"),
            (True, "a whole number", "num_samples"),
            ("high", "a number or null", "metrics", "recall", "value"),
            ([1, 2, 3], "two numbers", "metrics", "recall", "ci95"),
            ("most", "one of lower, higher, real", "metrics", "recall", "best"),
            ("x", "a number or null", "metrics", "sharpness", "real_vs_real"),
            (["noise"], "an object", "nulls"),
            ("x", "a number or null", "nulls", "noise", "recall"),
            (None, "an object", "pairs"),
            ([1], "a number or null", "seconds_per_image"),
        )
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_report_of_this_version_is_refused(fault: str, tmp_path: Path) -> None:
    folders = [written(tmp_path / name, report_of(GOOD, name=name)) for name in ("a", "b")]
    change, said = FAULTS[fault]
    change(Path(folders[1]))
    with pytest.raises(InputError, match=said) as raised:
        run_compare(folders, str(tmp_path / "out"))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(folders[1])


def test_pictures_of_two_versions_are_refused(tmp_path: Path) -> None:
    """Unless no figure shows them together: points of voxels are embedded for each model by itself."""
    other = pictures()._replace(**{f"points_{kind}": np.zeros((12, 7), np.float32) for kind in KINDS})
    for features in ("voxels", "none"):
        folder = tmp_path / features
        folders = [written(folder / "a", report_of(GOOD, features=features))]
        folders.append(written(folder / "b", report_of(GOOD, name="b", features=features), other))
        if features == "none":
            assert list(read_reports(folders)) == ["a", "b"]
        else:
            with pytest.raises(InputError, match=r"of a .* and of b .* differ in coordinates: \[4\], \[7\]; run"):
                read_reports(folders)
    small = pictures()._replace(**dict.fromkeys(("samples", "real", "trajectory"), np.zeros((3, 4, 4), np.uint8)))
    with pytest.raises(InputError, match=r"differ in planes: \[8, 8\], \[4, 4\]"):
        read_reports([folders[0], written(tmp_path / "c", report_of(GOOD, name="c", features="none"), small)])


def test_the_users_files_stay(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, report_of(GOOD, name=name)) for name in ("a", "b")]
    mine = tmp_path / "out" / "compare.csv"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match=f"{mine}: not written by this verb"):
        run_compare(folders, str(mine.parent))
    assert [path.name for path in mine.parent.iterdir()] == ["compare.csv"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["a"], "a/report.json: not there|1 report; give two"), ([], "reports"), (["a", "b", "--nmaes", "c"], "nmaes")],
)
def test_words_that_cannot_be(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)


@pytest.mark.usefixtures("fine_figures")
def test_two_reports_become_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `evaluate`, without its own figures, to the figures of a comparison, through the command line."""
    for name in ("save_scores", "save_figure", "save_map"):
        monkeypatch.setattr(figures, name, lambda *_: None)  # they have a test, and take nine tenths of the time
    people = People(heads(6, 1), heads(4, 2))
    noise = torch.randn(4, *people.test.shape[1:], generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    makers = {
        "like people": (heads(4, 3), Maker("A", "like people", 12, 20, 0.5, trajectory=lambda: heads(4, 3))),
        "noise": (noise, Maker("B", "noise", trajectory=lambda: None)),
    }
    for name, (samples, maker) in makers.items():
        evaluate(samples, people, tmp_path / name, maker=maker, features="none")
        assert (tmp_path / name / "compared.npz").stat().st_size < MAX_BYTES
    folders, out = [str(tmp_path / name) for name in makers], tmp_path / "out"
    assert main(["compare", *folders, "--out", str(out)]) == 0
    assert re.search(r"2 models: .*; best by their intervals: like people .*sharpness", capsys.readouterr().out)
    assert {path.name for path in out.iterdir()} == {*FILES, ".lit_medgen-compare.json"}
    page = (out / "compare.md").read_text()
    assert "| like people | 20 | 12 | 0.5 |" in page
    assert all(f"({name})" in page for name in FILES if name.endswith(".png"))
    rows = {row["name"]: row for row in csv.DictReader((out / "compare.csv").open())}
    report = json.loads((tmp_path / "noise" / "report.json").read_text())
    assert float(rows["noise"]["sharpness"]) == report["metrics"]["sharpness"]["value"]
    assert float(rows["null: noise"]["sharpness"]) == pytest.approx(report["nulls"]["noise"]["sharpness"])
    assert len(Image.open(out / "samples.png").getcolors(10**6) or []) > 50  # type: ignore[arg-type]


# What a report keeps.


def test_pictures_hold_the_middle_planes_and_the_points(tmp_path: Path) -> None:
    volumes = torch.rand(9, 1, 4, 6, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    points = {
        name: np.random.default_rng(0).normal(size=(MAX_POINTS + 3, 5)) for name in ("samples", "nearest", "unseen")
    }
    write_pictures(tmp_path, pictures_of(volumes, volumes[:2], volumes[:5], points))
    found = read_pictures(tmp_path)
    assert found.samples.shape == (NUM_IMAGES, 6 + 8 + 8, 6)
    assert (len(found.real), len(found.trajectory), len(found.points_samples)) == (2, 5, MAX_POINTS)
    axial = np.round((volumes[0, 0, :, :, 4].numpy().T[::-1].astype(float) + 1) / 2 * 255)
    assert np.array_equal(found.samples[0, :6, 1:5], axial)
    assert np.allclose(found.points_nearest, points["nearest"][:MAX_POINTS])


def test_points_of_many_coordinates_keep_their_distances(tmp_path: Path) -> None:
    """Johnson & Lindenstrauss: a share of about 1 / sqrt(2 k) of a distance is its error."""
    random = np.random.default_rng(1)
    points = dict.fromkeys(("samples", "nearest", "unseen"), random.normal(size=(20, 3000)))
    image = torch.zeros(2, 1, 8, 8)
    found = pictures_of(image, image, None, points).points_samples
    assert found.shape == (20, MAX_COORDINATES)
    far = [
        np.linalg.norm(some[:, None] - some, axis=-1)[*np.triu_indices(20, 1)] for some in (points["samples"], found)
    ]
    assert np.std(far[1] / far[0]) < 1.5 / (2 * MAX_COORDINATES) ** 0.5
    assert np.mean(far[1] / far[0]) == pytest.approx(1, abs=0.05)


def test_pictures_of_the_largest_images_are_small(tmp_path: Path) -> None:
    """Noise cannot be compressed: real images take half of it."""
    images = torch.rand(8, 1, 512, 512) * 2 - 1
    points = {name: np.random.default_rng(0).normal(size=(500, 6144)) for name in ("samples", "nearest", "unseen")}
    write_pictures(tmp_path, pictures_of(images, images, images, points))
    assert (tmp_path / "compared.npz").stat().st_size < MAX_BYTES


def test_equal_points_have_one_place() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(10, 3)), random.normal(size=(6, 3))
    first, second, third = in_two_dimensions([a, b, a[::-1]])
    assert np.array_equal(second, in_two_dimensions([a, b, a[::-1]])[1])  # one seed
    assert np.array_equal(first, third[::-1])
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 16


def test_every_score_knows_which_value_is_best() -> None:
    """The direction that papers give it: of MS-SSIM, spread and sharpness the one nearest to real images."""
    people = Images.of(heads(4, 1))
    given = Given(Known(remember=False), people, torch.zeros(2, people.all()[0].numel()), seams=(0, [1]))
    best = {name: make(given).best for kind in ("images", "brains", "slices") for name, make in SCORES[kind].items()}
    assert {name for name, which in best.items() if which == "lower"} == {
        "ms_ssim_gap",
        "mmd_linear_biased",
        "mmd_rbf_unbiased",
    }
    assert "higher" not in best.values()
    pairs = {name: metric.best for name, make in PAIRS.items() if (metric := make(given))}
    assert pairs == {"psnr": "higher", "mae": "lower", "ssim": "higher", "ms_ssim": "higher"}
    report = report_of(GOOD, pairs={"ssim": report_of(GOOD)["metrics"]["recall"]}, agreement={})
    assert list(rows_of(report)) == [*GOOD, "ssim, of pairs"]


def test_what_reports_compare_with_is_known_by_its_people_and_voxels() -> None:
    """The same whatever the blocks it is read in, another with one other voxel; folds have one cohort."""
    names = [f"person {i}" for i in range(9)]

    def reference(test: list[str], **parts: list[str]) -> dict[str, Any]:
        sums = {part: sum_of(people) for part, people in ({"test": test} | parts).items()}
        data = SimpleNamespace(spec=replace(SPEC, people={}, people_sums=sums), fold="0 of 3")
        return reference_of(data, Images.of(heads(3, 1)), Images.of(heads(4, 2)))  # type: ignore[arg-type]

    whole = reference(names[:3], train=names[3:8], val=names[8:])
    assert whole["cohort"] == reference(names[3:6], train=[*names[:3], *names[7:]], val=names[6:7])["cohort"]
    assert whole["cohort"] != reference(names[:3], train=names[3:8])["cohort"]
    assert whole["size"] == list(SPEC.size)
    images = heads(3, 1)
    images[1, 0, 2, 3, 4] += 1e-6
    data = SimpleNamespace(spec=SPEC)
    other = reference_of(data, Images.of(images), Images.of(heads(4, 2)))["images"]  # type: ignore[arg-type]
    assert (other["train"] == whole["images"]["train"], other["test"] == whole["images"]["test"]) == (True, False)
