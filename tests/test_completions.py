"""Completions from the command line: masks by file, folder, table and for the data's own people; what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_requests import SPEC, Toy
from tiny_run import TinyRun, one_line

from lit_medgen.__main__ import main
from lit_medgen.batch import Condition, DataSpec, Request, Requests
from lit_medgen.completion_requests import completing
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.images.nifti import write_nifti
from lit_medgen.images.png import read_png, write_png
from lit_medgen.requests import RequestOptions, requested

FLAT = DataSpec(1, (6, 4), (1.0, 1.0), orientation="")


class Region(Toy):
    """A model that completes regions."""

    completes_regions = True


REGION, SLICES = Region((), ("image",)), Toy((), ("image",))


def folder(path: Path, **files: np.ndarray) -> str:
    path.mkdir(exist_ok=True)
    for name, values in files.items():
        write_png(path / f"{name}.png", values)
    return str(path)


CORNER = np.zeros(FLAT.size)
CORNER[:2, :3] = 1


@pytest.fixture
def sources(tmp_path: Path) -> str:
    return folder(tmp_path / "sources", a=np.full(FLAT.size, 0.2), b=np.full(FLAT.size, 0.8))


def test_what_is_not_zero_in_a_mask_is_made_anew(sources: str, tmp_path: Path) -> None:
    masks = folder(tmp_path / "masks", a=CORNER, b=CORNER[::-1], unused=CORNER)
    table = tmp_path / "t.csv"
    table.write_text("source,mask\nsources/a.png,masks/a.png\nsources/b.png,masks/b.png\n")
    for options in (RequestOptions(sources=sources, masks=masks), RequestOptions(table=str(table))):
        requests = requested(options, REGION, FLAT, None)
        assert requests.parts == {"image"}
        assert list(requests.made_from) == [{"source": f"{name}.png", "mask": f"{name}.png"} for name in "ab"]
        condition = requests.joined([0, 1]).condition
        assert condition.source is None
        assert condition.image is not None
        assert condition.observed is not None
        expected = [torch.from_numpy(mask.copy() == 0) for mask in (CORNER, CORNER[::-1])]
        assert torch.equal(condition.observed[:, 0], torch.stack(expected))
        torch.testing.assert_close(condition.image[:, 0, 0, 0], torch.tensor([-0.6, 0.6]), atol=1e-2, rtol=0)


def test_a_file_is_the_mask_of_all_sources_and_people(sources: str, tmp_path: Path) -> None:
    mask = str(Path(folder(tmp_path / "masks", any=CORNER), "any.png"))
    requests = requested(RequestOptions(sources=sources, masks=mask), REGION, FLAT, None)
    assert [row["mask"] for row in requests.made_from] == ["any.png", "any.png"]
    targets = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 1, 1, *FLAT.size) / 4

    def read(index: int) -> Request:
        return Request([index], Condition(), [f"k{index}"], None, targets[index])

    own = Requests(range(3), [{"key": f"k{i}"} for i in range(3)], frozenset(), read)
    masks = folder(tmp_path / "masks", more=CORNER[::-1])
    for path, names in ((mask, ["any.png"] * 3), (masks, ["any.png", "more.png", "any.png"])):
        found = completing(own, None, path, FLAT)
        assert [row["mask"] for row in found.made_from] == names
        assert [row["key"] for row in found.made_from] == ["k0", "k1", "k2"]
        condition = found.read(2).condition
        assert condition.image is not None
        assert condition.observed is not None
        assert torch.equal(condition.image, targets[2])
        assert torch.equal(condition.observed[0, 0], torch.from_numpy(CORNER == 0))


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (REGION, {"masks": "corner"}, ["--masks", "add --sources DIR or --like test"]),
        (REGION, {"sources": "sources"}, ["--sources", "keeps some voxels", "add --masks DIR"]),
        (REGION, {"sources": "sources", "masks": "nowhere"}, ["--masks", "no file or folder", "nowhere"]),
        (REGION, {"sources": "sources", "masks": "one"}, ["no mask of the source 'b'"]),
        (REGION, {"sources": "sources", "masks": "zeros/a.png"}, ["a mask of zeros", "nothing would be made"]),
        (REGION, {"sources": "sources", "masks": "ones/a.png"}, ["without zeros", "nothing of the source"]),
        (REGION, {"sources": "sources", "masks": "small/a.png"}, ["a mask of (2, 2)", "(6, 4)"]),
        (REGION, {"sources": "sources", "masks": "one", "given": [1]}, ["--masks", "not together with --given"]),
        (REGION, {"table": "t.csv", "masks": "one"}, ["--requests", "leave out the other options"]),
        (SLICES, {"sources": "sources", "masks": "one"}, ["--masks", "takes no masks", "--given SLICES"]),
        (Toy(), {"sources": "sources", "masks": "one"}, ["--masks", "completes no images"]),
    ],
)
def test_what_cannot_be_completed(
    model: Toy, options: dict[str, Any], words: list[str], sources: str, tmp_path: Path
) -> None:
    folder(tmp_path / "corner", a=CORNER, b=CORNER)
    folder(tmp_path / "one", a=CORNER)
    folder(tmp_path / "zeros", a=np.zeros(FLAT.size))
    folder(tmp_path / "ones", a=np.ones(FLAT.size))
    folder(tmp_path / "small", a=np.eye(2))
    paths = {name: str(tmp_path / options[name]) for name in ("sources", "masks") if name in options}
    with pytest.raises((InputError, MissingDataError)) as error:
        requested(RequestOptions(**options | paths), model, FLAT, None)
    assert all(word in str(error.value) for word in words), error.value


def test_a_mask_without_its_source_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "mask.nii", np.ones(SPEC.size, dtype=np.float32), np.eye(4))
    table = tmp_path / "t.csv"
    table.write_text("seed,mask\n1,mask.nii\n")
    with pytest.raises(InputError, match="row 2: no source"):
        requested(RequestOptions(table=str(table)), REGION, SPEC, None)


def test_images_are_completed_from_the_command_line(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path / "run", phantoms, ("configs/ddpm_2d.yaml",))
    assert run.fit() == 0
    assert run.on_checkpoint("sample", "--num", "2", "--out", str(tmp_path / "sources")) == 0
    size = read_png(next((tmp_path / "sources").glob("*.png")))[0].shape
    mask = np.zeros(size)
    mask[: size[0] // 2] = 1
    masks = str(Path(folder(tmp_path / "masks", any=mask), "any.png"))
    words = ["--sources", str(tmp_path / "sources"), "--masks", masks, "--seeds", "[7,8]"]
    words += ["--out", str(tmp_path / "out")]
    repaint = ["--model.init_args.sampler=lit_medgen.diffusion.RePaint"]
    repaint += [f"--model.init_args.sampler.init_args.{key}" for key in ("resamplings=2", "jump=3")]
    repaint += ["--model.init_args.sampler.init_args.sampler=lit_medgen.diffusion.DDIM"]
    repaint += ["--model.init_args.sampler.init_args.sampler.init_args.num_steps=4"]
    for more in ([], repaint):
        assert run.on_checkpoint("sample", *words, *more) == 0
        assert "completions of patients' images" in capsys.readouterr().out
        rows = list(csv.DictReader((tmp_path / "out" / "manifest.csv").open()))
        assert [row["kind"] for row in rows] == ["completion"] * 2
        for row in rows:
            condition = json.loads(row["condition"])
            assert condition["mask"] == "any.png"
            made, given = (
                read_png(tmp_path / where / name)[0]
                for where, name in (("out", row["file"]), ("sources", condition["source"]))
            )
            np.testing.assert_array_equal(made[mask == 0], given[mask == 0])
            assert (made != given).any()
    assert run.on_checkpoint("sample", "--like", "test", "--masks", masks, "--out", str(tmp_path / "people")) == 0
    assert run.on_checkpoint("sample", *words[:2], "--masks", str(tmp_path / "none"), "--out", str(tmp_path / "o")) == 2
    assert "no file or folder" in one_line(capsys)
    assert main(["sample", "--ckpt_path", str(run.last), "--masks", masks, "--out", str(tmp_path / "o")]) == 2
    assert "add --sources DIR" in one_line(capsys)
