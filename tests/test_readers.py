"""Reader studies: what is drawn, a page that tells nothing, and scores of readers whose answers are known."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TinyRun, one_line

from lit_medgen.__main__ import main
from lit_medgen.batch import Images
from lit_medgen.errors import InputError
from lit_medgen.evaluation.pictures import as_bytes
from lit_medgen.evaluation.quartets import KEY, PAGE, SIZE, chosen, write_study
from lit_medgen.evaluation.readers import ANSWERS, run_readers

NUM = 6


@pytest.mark.parametrize("num", [1, 2, 3, 5, 12, 50])
def test_half_of_all_images_are_synthetic_and_none_is_shown_twice(num: int) -> None:
    quartets = chosen(num, 2 * num, 2 * num)
    shown = [one for four in quartets for one in four]
    assert len(set(shown)) == SIZE * num
    assert sum(one.synthetic for one in shown) == 2 * num
    counts = Counter(sum(one.synthetic for one in four) for four in quartets)
    assert set(counts) <= {1, 2, 3}
    assert counts[1] == counts[3] == num // 3
    assert chosen(num, 2 * num, 2 * num) == quartets
    assert num == 1 or chosen(num, 2 * num, 2 * num, seed=1) != quartets


def test_places_tell_nothing() -> None:
    places = np.array([[one.synthetic for one in four] for four in chosen(3000, 6000, 6000)])
    assert np.abs(places.mean(0) - 0.5).max() < 0.03  # three standard errors of 3000


@pytest.mark.parametrize(
    ("real", "synthetic", "told"),
    [(19, 40, "20 images are images of test people, but there are 19; give 9"), (40, 19, "greater --num")],
)
def test_too_few_images_are_refused(real: int, synthetic: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        chosen(10, real, synthetic)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of small images, with its page and key."""
    torch.manual_seed(0)
    kinds = [Images.of(torch.rand(2 * NUM, 1, 6, 8) * 2 - 1) for _ in range(2)]
    write_study(tmp_path / "readers", chosen(NUM, 2 * NUM, 2 * NUM), *kinds, colour=False)
    return tmp_path / "readers"


def test_the_page_has_the_images_and_no_word_about_them(study: Path) -> None:
    page = (study / PAGE).read_text()
    content = json.loads(re.search(r'application/json">(.*?)</script>', page).group(1))  # type: ignore[union-attr]
    torch.manual_seed(0)
    kinds = [as_bytes(torch.rand(2 * NUM, 1, 6, 8) * 2 - 1, colour=False) for _ in range(2)]
    for number, four in enumerate(chosen(NUM, 2 * NUM, 2 * NUM)):
        for place, one in enumerate(four):
            image = Image.open(io.BytesIO(base64.b64decode(content["quartets"][number][place])))
            np.testing.assert_array_equal(np.asarray(image), kinds[0 if one.synthetic else 1][one.index])
            assert not image.info
    assert set(content) == {"id", "quartets"}
    assert not re.findall(r"https?:|src=\"(?!data)|@import|fetch\(|XMLHttp", page)


def answered(folder: Path, path: Path, says: Callable[[bool, int], tuple[bool, int]], **changed: str) -> Path:
    """Answers of a reader, by what each image is and its number, to synthetic and how sure; `changed` in the first."""
    with (folder / KEY).open() as file:
        key = list(csv.DictReader(file))
    rows = []
    for number, row in enumerate(key):
        synthetic, sure = says(row["synthetic"] == "1", number)
        answer = "synthetic" if synthetic else "real"
        values = (row["study"], path.stem, row["quartet"], row["place"], answer, str(sure), "3.5")
        rows.append(dict(zip(ANSWERS, values, strict=True)))
    rows[0] |= changed
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ANSWERS, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_readers_who_know_and_who_guess(study: Path, tmp_path: Path) -> None:
    knows = answered(study, tmp_path / "knows.csv", lambda truth, _: (truth, 3))
    wrong = answered(study, tmp_path / "wrong.csv", lambda truth, _: (not truth, 3))
    credulous = answered(study, tmp_path / "credulous.csv", lambda truth, number: (False, 1))
    shy = answered(study, tmp_path / "shy.csv", lambda truth, _: (True, 3 if truth else 1))
    report = run_readers(study, [knows, wrong, credulous, shy], tmp_path / "out")
    values = {
        reader: [row[name]["value"] for name in ("correct", "synthetic_told", "real_told", "auc")]
        for reader, row in report["readers"].items()
    }
    assert values["knows"] == [1, 1, 1, 1]
    assert values["wrong"] == [0, 0, 0, 0]
    assert values["credulous"] == [0.5, 0, 1, 0.5]
    assert values["shy"] == [0.5, 1, 0, 1]  # how sure they were tells what they did not say
    assert report["mean"]["correct"]["value"] == 0.5
    low, high = report["readers"]["credulous"]["correct"]["ci95"]
    assert (low, high) == pytest.approx((0.3143, 0.6857), abs=1e-4)  # 12 of 24, by Wilson's formula
    assert "| shy | 24 | 0.50 (0.31 to 0.69) | 1.00" in (tmp_path / "out/readers.md").read_text()


def test_the_mean_of_readers_is_a_share_and_agreement_is_no_certainty(study: Path, tmp_path: Path) -> None:
    knows = answered(study, tmp_path / "knows.csv", lambda truth, _: (truth, 3))
    wrong = answered(study, tmp_path / "wrong.csv", lambda truth, _: (not truth, 3))
    credulous = answered(study, tmp_path / "a|b.csv", lambda truth, _: (False, 1))
    report = run_readers(study, [knows, wrong, credulous], tmp_path / "out")
    assert report["mean"]["correct"] == {"value": 0.5, "ci95": [0.0, 1.0]}  # 0, 0.5 and 1: Student's is -0.74 to 1.74
    assert "| a\\|b | 24 |" in (tmp_path / "out/readers.md").read_text()
    twin = answered(study, tmp_path / "twin.csv", lambda truth, _: (truth, 3))
    report = run_readers(study, [knows, twin], tmp_path / "out")
    assert report["mean"]["correct"] == {"value": 1.0}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"reader": " "}, "no reader"),
        ({"study": "another"}, "of study 'another', not of"),
        ({"quartet": "7"}, "quartet '7', place '1'"),
        ({"place": "-1"}, "place '-1'"),
        ({"answer": "maybe"}, "answer 'maybe'"),
        ({"sure": "4"}, "sure '4'; expected an image of the study, real or synthetic, and 1 to 3"),
        ({"place": "2"}, "answered this image before"),
    ],
)
def test_answers_that_no_page_saves_are_one_line(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], told: str
) -> None:
    path = answered(study, tmp_path / "a.csv", lambda truth, _: (truth, 1), **changed)
    assert main(["readers", str(study), str(path), "--out", str(tmp_path / "out")]) == 2
    assert told in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "\0"])
def test_files_that_are_no_answers_are_one_line(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = tmp_path / "answers.csv"
    if content is not None:
        path.write_text(content)
    assert main(["readers", str(study), str(path)]) == 2
    assert str(path) in one_line(capsys)
    assert main(["readers", str(tmp_path), str(path)]) == 2
    assert KEY in one_line(capsys)


def test_one_reader_gives_one_file(study: Path, tmp_path: Path) -> None:
    path = answered(study, tmp_path / "a.csv", lambda truth, _: (truth, 1))
    with pytest.raises(InputError, match="give each reader's last file"):
        run_readers(study, [path, path], tmp_path / "out")


def test_evaluate_writes_a_study(trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report"
    words = ["--out", str(report), "--features", "none", "--strips", "false", "--num", "2"]
    assert trained.on_checkpoint("evaluate", *words, "--quartets", "9") == 2
    assert "--quartets is 9" in one_line(capsys)
    assert not report.exists()
    assert trained.on_checkpoint("evaluate", *words, "--quartets", "1") == 0
    with (report / "readers" / KEY).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SIZE
    assert {row["image"].startswith("sample_") for row in rows if row["synthetic"] == "1"} == {True}
    assert sorted(row["synthetic"] for row in rows) == ["0", "0", "1", "1"]
    assert trained.on_checkpoint("evaluate", *words) == 0
    assert not (report / "readers" / PAGE).exists()  # of the report before
