"""A toy method made from texts, all the way through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_toy_methods import Toy, refused
from toys.data import write_heads
from write_texts import write_texts

from lit_medgen.__main__ import main
from lit_medgen.text_embeddings import TextEmbeddings

NAMES = [f"person_{person}/image" for person in range(10)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts of each person."""
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.safetensors", NAMES * 2)


@pytest.fixture(scope="module")
def caption(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Toy:
    """A toy that was fitted on them, in two sittings."""
    folder = tmp_path_factory.mktemp("caption")
    heads = folder / "heads" / "raw"
    write_heads(heads, 10)
    return Toy(folder, heads, "Caption", f"--data.init_args.text={texts}").fit(2, 3)


def test_images_are_asked_for_by_text(caption: Toy, texts: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(caption.load().null_text, TextEmbeddings(texts, "text").null)
    one, other = NAMES[:2]
    table = tmp_path / "requests.csv"
    table.write_text(f"seed,text\n5,{one}\n5,{other}\n5,\n5,{one}\n")
    images, _, made_from = caption.sample("--requests", table)  # from the data's own file
    assert made_from == [{"text": one}, {"text": other}, {}, {"text": one}]
    np.testing.assert_array_equal(images[0], images[3])
    for index in (1, 2):
        assert np.abs(images[0] - images[index]).max() > 1e-3
    unasked, _, made_from = caption.sample("--seeds=5")
    assert made_from == [{}]
    np.testing.assert_allclose(unasked[0], images[2], atol=1e-4)
    prompts = write_texts(tmp_path / "prompts", ["empty", "first"])
    named, _, made_from = caption.sample(f"--text_embeddings={prompts}", "--text=empty", "--seeds=[5,6]")
    assert made_from == [{"text": "empty"}] * 2
    np.testing.assert_allclose(named[0], images[0], atol=1e-4)  # the same tokens under another name
    every, _, made_from = caption.sample(f"--text_embeddings={prompts}", "--text=all", "--num=3", "--batch_size=2")
    assert [row["text"] for row in made_from] == ["empty", "first", "empty"]
    assert len(every) == 3


def test_people_are_asked_for_by_their_texts(caption: Toy) -> None:
    images, _, made_from = caption.sample("--like=test", "--num=2")
    assert all(row.keys() == {"key"} for row in made_from)  # a name may say whose image it is
    assert np.abs(images[0] - images[1]).max() > 1e-3
    assert caption.evaluate()["metrics"]


def test_another_encoder_is_refused(caption: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_texts(tmp_path / "other", NAMES, encoder="other")
    option = f"--data.init_args.text={other}"
    words = ("by other (000", "trained with toy (000")
    refused(main(["fit", *caption.words, option, "--ckpt_path=last"]), capsys, "data.init_args.text", *words)
    for verb in ("evaluate", "sample"):
        like = ["--like=test"] if verb == "sample" else []
        code = caption.on_checkpoint(verb, option, f"--out={tmp_path / 'out'}", *like)
        refused(code, capsys, "data.init_args.text", *words)
    code = caption.on_checkpoint("sample", f"--text_embeddings={other}", "--text=all", f"--out={tmp_path / 'out'}")
    refused(code, capsys, "--text_embeddings", *words)


def test_texts_that_are_not_there(caption: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "requests.csv"
    table.write_text(f"text\n{NAMES[0]}\nsomebody\n")
    for words, named in (
        (["--text=somebody"], ("--text 'somebody': no text of that name among the 10",)),
        (["--requests", table], ("row 3: text 'somebody'",)),
        ([f"--text_embeddings={tmp_path / 'none'}", "--text=all"], ("--text_embeddings: no file",)),
        ([f"--text_embeddings={table}", "--text=all"], (str(table), "docs/text.md")),
        ([f"--text_embeddings={table}"], ("add --text NAME",)),
        (["--text=all", "--like=test"], ("--text all",)),
        (["--text=all", "--requests", table], ("--requests", "leave out the other options")),
    ):
        refused(caption.on_checkpoint("sample", *words, f"--out={tmp_path / 'out'}"), capsys, *named)


def test_a_model_without_texts_is_asked_for_none(
    caption: Toy, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = caption.folder / "heads" / "raw"
    refused(main(["fit", *Toy(tmp_path, heads, "Caption").words]), capsys, "data.init_args.text: no texts", "Caption")
    unnamed = write_texts(tmp_path / "unnamed", ["a", "b"])
    toy = Toy(tmp_path, heads, "Caption", f"--data.init_args.text={unnamed}")
    refused(main(["fit", *toy.words]), capsys, "none of the 2 names", "is that of an image")
