"""Frozen parts of any depth: kept in one file, restored without theirs, refused when they are others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_equal
from tiny_run import TinyRun, one_line
from toy_chain import Link, MayBeGuided

import lit_medgen
from lit_medgen.__main__ import main
from lit_medgen.batch import Condition
from lit_medgen.checkpoints import FACTS, read_checkpoint
from lit_medgen.errors import InputError
from lit_medgen.loading import build_method, restore
from lit_medgen.methods import CDPM
from lit_medgen.training.frozen import FrozenPart, weights_hash
from lit_medgen.trust import prefixes, trusting

DEPTH = 3


def run(folder: Path, phantoms: Path) -> TinyRun:
    return TinyRun(folder, phantoms, ("configs/vqgan.yaml",))


def words(part: Path | None, kind: str = "Link") -> list[str]:
    parts = [f"--model.init_args.part={part}"] if part else []
    return [f"--model=toy_chain.{kind}", *parts, "--trust_config"]


def load(path: Path) -> Any:
    return lit_medgen.load(path, trust="toy_chain")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> list[Path]:
    """Checkpoints of a link without a part, of one on that, and so on."""
    folder, paths = tmp_path_factory.mktemp("chain"), list[Path]()
    for depth in range(DEPTH + 1):
        link = run(folder / str(depth), phantoms)
        assert link.fit(*words(paths[-1] if paths else None)) == 0
        paths.append(folder / f"{depth}.ckpt")
        shutil.copy(link.last, paths[-1])
    return paths


def test_one_file_holds_all_parts(chain: list[Path], tmp_path: Path) -> None:
    model, below = load(shutil.copy(chain[-1], tmp_path)), [load(path) for path in chain]
    for link in reversed(below):  # from the top
        ours, theirs = model.state_dict(), link.state_dict()
        assert not any("part.only_trained" in name for name in ours)
        assert_equal(dict(ours), {name: value for name, value in theirs.items() if name in ours})
        assert torch.equal(model.brightest, link.brightest)
        assert (model.depth, model.spec, model.config) == (link.depth, link.spec, link.config)
        model = getattr(model, "part", None)
    record = read_checkpoint(chain[-1])[FACTS]
    for link in reversed(below[:-1]):
        record = record["frozen"]["part"]
        del link.only_trained
        assert record["weights"] == weights_hash(link)


def test_a_run_goes_on_without_the_files_of_its_parts(chain: list[Path], tmp_path: Path, phantoms: Path) -> None:
    whole, interrupted, part = run(tmp_path / "a", phantoms), run(tmp_path / "b", phantoms), tmp_path / "part.ckpt"
    shutil.copy(chain[-2], part)
    assert whole.fit(*words(part), "--trainer.max_steps=3") == 0
    assert interrupted.fit(*words(part)) == 0
    part.unlink()
    assert interrupted.fit(*words(part), "--trainer.max_steps=3", "--ckpt_path=last") == 0
    ours, theirs = (torch.load(one.last, weights_only=True) for one in (whole, interrupted))
    for key in ("state_dict", "optimizer_states"):
        assert_equal(ours[key], theirs[key])
    assert ours[FACTS]["frozen"]["part"]["weights"] == theirs[FACTS]["frozen"]["part"]["weights"]
    seeds = [0, 1]
    assert torch.equal(load(whole.last).sample(Condition(), seeds), load(interrupted.last).sample(Condition(), seeds))


def test_parts_stay_frozen_in_evaluation_mode(chain: list[Path]) -> None:
    model = load(chain[-1]).train()
    assert {name for name, each in model.named_modules() if each.training} == {"", "dropout", "network", "only_trained"}
    assert {name for name, each in model.named_parameters() if each.requires_grad} == {
        *("scale", "network.weight", "network.bias", "only_trained.weight", "only_trained.bias")
    }


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("Chooser", [], "is a checkpoint of Link, not of Stranger; make one with `fit --model toy_chain.Stranger`"),
        ("Link", ["--data.init_args.seed=4"], "trained on another split of people"),
        ("Link", ["--data.init_args.preprocessing.size=[16,20,16]"], "data.init_args.preprocessing.size is"),
    ],
)
def test_another_part_is_refused(
    kind: str,
    options: list[str],
    text: str,
    chain: list[Path],
    tmp_path: Path,
    phantoms: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path, phantoms).fit(*words(chain[1], kind), *options) == 2
    line = one_line(capsys)
    assert text in line
    assert str(chain[1]) in line


def test_other_weights_than_the_run_began_with_are_refused(
    chain: list[Path], tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link, part = run(tmp_path / "run", phantoms), tmp_path / "part.ckpt"
    shutil.copy(chain[0], part)
    assert link.fit(*words(part)) == 0
    for other in (chain[1], None):
        part.unlink()
        if other:
            shutil.copy(other, part)
        assert link.fit(*words(part if other else None), "--trainer.max_steps=3", "--ckpt_path=last") == 2
        line = one_line(capsys)
        assert (
            "part.ckpt holds other weights" if other else "frozen parts [part], but the config describes []"
        ) in line


def test_a_guide_that_was_trained_on_another_part_is_refused(
    chain: list[Path], tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = run(tmp_path, phantoms)
    assert link.fit(*words(chain[1], "Guided"), f"--model.init_args.guide={chain[1]}") == 2
    line = one_line(capsys)
    assert f"model.init_args.guide: {chain[1]} was not trained on the part of {chain[1]}" in line
    assert link.fit(*words(chain[0], "Guided"), f"--model.init_args.guide={chain[1]}") == 0
    model = load(link.last)
    assert_equal(dict(model.guide.part.state_dict()), dict(model.part.state_dict()))


def test_a_record_is_checked_at_every_depth(chain: list[Path]) -> None:
    record = read_checkpoint(chain[-1])[FACTS]
    deepest = record["frozen"]["part"]["frozen"]["part"]["frozen"]["part"]
    deepest["config"] = {"model": {"class_path": "subprocess.Popen"}}
    link = Link("part.ckpt")
    with (
        trusting(prefixes("toy_chain")),
        pytest.raises(InputError, match=r"here: part: part: part: names the class 'subprocess\.Popen'"),
    ):
        link.take_record(record, "here")


# Late parts.


@pytest.fixture(scope="module")
def late(chain: list[Path], phantoms: Path) -> dict[str, Path]:
    """Checkpoints of a model trained without a guide, of one trained with it, and of guides that fit and do not."""
    kinds = {
        "guide": (chain[0], "MayBeGuided", []),
        "other_part": (chain[1], "MayBeGuided", []),
        "other_noise": (chain[0], "MayBeGuided", ["--model.init_args.noise=1"]),
        "alone": (chain[0], "MayBeGuided", []),
    }
    paths = dict[str, Path]()
    for name, (part, kind, options) in kinds.items():
        link = run(chain[0].parent / name, phantoms)
        assert link.fit(*words(part, kind), *options) == 0
        paths[name] = link.last
    link = run(chain[0].parent / "together", phantoms)
    assert link.fit(*words(chain[0], "MayBeGuided"), f"--model.init_args.guide={paths['guide']}") == 0
    return paths | {"together": link.last}


def sampled(checkpoint: Path, out: Path, *more: str) -> int:
    """Samples one image, as a user does."""
    words = ["sample", f"--ckpt_path={checkpoint}", f"--out={out}", "--num=1", "--trainer.accelerator=cpu", *more]
    return main([*words, "--trust_config"])


def test_a_late_part_is_read_when_the_model_is_loaded(late: dict[str, Path], tmp_path: Path) -> None:
    """Of a model that was trained without it: the same weights, and the guide's, which changes what is made."""
    guide = f"--model.init_args.guide={late['guide']}"
    assert sampled(late["alone"], tmp_path / "alone") == 0
    assert sampled(late["alone"], tmp_path / "guided", guide) == 0
    alone, guided = (next((tmp_path / name).glob("*.png")).read_bytes() for name in ("alone", "guided"))
    assert alone != guided
    config = read_checkpoint(late["alone"])[FACTS]["config"]
    config["model"]["init_args"]["guide"] = str(late["guide"])
    with trusting(prefixes("toy_chain")):
        model = build_method(config)
        for _ in range(2):  # `sample` and `evaluate` of a model that has it already
            restore(model, late["alone"])
    trained, part = load(late["alone"]), load(late["guide"]).as_frozen_part()
    ours = model.state_dict()
    assert_equal({name: ours[name] for name in trained.state_dict()}, dict(trained.state_dict()))
    assert_equal(dict(model.guide.state_dict()), dict(part.state_dict()))
    assert not any(each.requires_grad for each in model.guide.parameters())
    assert not model.guide.training


def test_a_late_part_of_training_is_kept_and_needs_no_file(late: dict[str, Path], tmp_path: Path) -> None:
    """One file again; a path to another is not even read."""
    model = load(late["together"])
    assert_equal(dict(model.guide.state_dict()), dict(load(late["guide"]).as_frozen_part().state_dict()))
    assert sampled(late["together"], tmp_path, f"--model.init_args.guide={tmp_path / 'gone.ckpt'}") == 0


@pytest.mark.parametrize(
    ("guide", "text"),
    [
        ("other_part", "was not trained on the part of"),
        ("other_noise", "was trained on other noise levels than this model; give one that was trained with the same"),
        ("gone", "model.init_args.guide: no file"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "sample"])
def test_a_late_part_that_does_not_belong_is_refused(
    verb: str,
    guide: str,
    text: str,
    late: dict[str, Path],
    chain: list[Path],
    tmp_path: Path,
    phantoms: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, whether it comes in training or afterwards."""
    path = late.get(guide, tmp_path / "gone.ckpt")
    option = f"--model.init_args.guide={path}"
    if verb == "fit":
        assert run(tmp_path, phantoms).fit(*words(chain[0], "MayBeGuided"), option) == 2
    else:
        assert sampled(late["alone"], tmp_path, option) == 2
    line = one_line(capsys)
    assert text in line
    assert str(path) in line


def test_a_part_that_is_not_late_must_have_been_there(late: dict[str, Path], chain: list[Path]) -> None:
    """Only what a method says is late may come later, and only what is described is taken from a record."""
    record = read_checkpoint(late["together"])[FACTS]
    for kept in (record["frozen"].keys() - {"part"}, record["frozen"].keys() | {"unknown"}):
        frozen = {name: record["frozen"].get(name, record["frozen"]["part"]) for name in kept}
        with pytest.raises(InputError, match="but the config describes"):
            MayBeGuided(str(chain[0]), str(late["guide"])).take_record(record | {"frozen": frozen}, "here")


def test_a_run_folder_stands_for_its_newest_checkpoint(trained: TinyRun) -> None:
    part = FrozenPart(trained.last.parents[1], CDPM, "python -m lit_medgen fit", same_data=False)
    assert part.file == trained.last
    assert weights_hash(part.read("part", None)) == weights_hash(lit_medgen.load(trained.last))


@pytest.mark.parametrize("changed", [{"segmentation": "lungs"}, {"size": [512, 512]}, {"pixels": [32, 32]}, {}])
def test_slices_of_another_kind_are_refused(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decides how images and maps look must be the same; which slices are kept need not, nor their classes."""
    theirs = {"size": [64, 64], "pixels": None, "segmentation": "bands", "preset": "thesis", "share": 0.2}
    ours = theirs | {"preset": "alike", "share": 0} | changed
    stage, path = Link(None), tmp_path / "stage.ckpt"
    stage.describe({"data": {"init_args": {"ct": theirs}}})
    path.touch()
    monkeypatch.setattr("lit_medgen.training.frozen.load", lambda _: stage)
    part, config = FrozenPart(path, Link, "fit"), {"data": {"init_args": {"ct": ours}}}
    if not changed:
        assert part.read("first_stage", config) is stage
        return
    (name,) = changed
    with pytest.raises(InputError, match=rf"data\.init_args\.ct\.{name} is .*, but {path} was trained with .*; use"):
        part.read("first_stage", config)


def test_what_differs_is_named_and_an_argument_that_came_later_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"size": [8, 8], "intensity": "percentile", "sources": []}
    stage, path = Link(None), tmp_path / "stage.ckpt"
    stage.describe({"data": {"init_args": {"preprocessing": theirs}}})
    path.touch()
    monkeypatch.setattr("lit_medgen.training.frozen.load", lambda _: stage)
    part, ours = FrozenPart(path, Link, "fit"), theirs | {"sources": ["flair"], "class_values": []}
    assert part.read("first_stage", {"data": {"init_args": {"preprocessing": ours}}}) is stage
    complaint = rf"data\.init_args\.preprocessing\.size is \[9, 8\], but {path} was trained with \[8, 8\]; use"
    with pytest.raises(InputError, match=complaint):
        part.read("first_stage", {"data": {"init_args": {"preprocessing": ours | {"size": [9, 8]}}}})
