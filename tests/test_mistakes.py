"""What newcomers mistype: one line that names what they probably meant."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from tiny_run import ROOT, TinyRun, one_line

from lit_medgen import __version__
from lit_medgen.__main__ import main
from lit_medgen.batch import DataSpec
from lit_medgen.cli import _untrained
from lit_medgen.errors import InputError, constructed
from lit_medgen.mistakes import nearest_class, nearest_key
from lit_medgen.sampling import checked_attributes
from lit_medgen.training.generator import Generator

CDPM = ["fit", "--config", "configs/cdpm.yaml"]


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["fitt"], "did you mean fit?"),
        (["--config", "configs/cdpm.yaml", "evaluate"], "the verb comes first: evaluate --config"),
        ([*CDPM, "--model.lr=0.1"], "did you mean --model.init_args.optimizer.init_args.lr?"),
        ([*CDPM, "--lr", "0.1"], "did you mean --model.init_args.optimizer.init_args.lr?"),
        ([*CDPM, "--data.batch_sise=2"], "did you mean --data.init_args.batch_size?"),
        ([*CDPM, "--ckpt-path=last"], "did you mean --ckpt_path?"),
        ([*CDPM, "--learning_rate=1"], "did you mean --model.init_args.optimizer.init_args.lr?"),
        ([*CDPM, "--seed=1"], "did you mean --seed_everything?"),
        ([*CDPM, "--name=a/b"], "--name is 'a/b'; give the name of one folder"),
        ([*CDPM, "--name="], "--name is ''"),
        ([*CDPM, "--name=.."], "--name is '..'"),
        ([*CDPM, "--trainer.gradient_clip_val=-1"], "; give 0 or more"),
        ([*CDPM, "--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches is 0; give 1 or more"),
        ([*CDPM, "--trainer.val_check_interval=0"], "give more than 0"),
        ([*CDPM, "--trainer.callbacks+={class_path: lit_medgen.callbacks.EMA, init_args: {decay: 1.5}}"], "EMA.decay"),
        ([*CDPM, "--data.init_args.num_workers=-1"], "data.init_args.num_workers is -1"),
        ([*CDPM, "--data.init_args.num_jobs=0"], "data.init_args.num_jobs is 0"),
        ([*CDPM, "--max_steps", "9"], "did you mean --trainer.max_steps?"),
        ([*CDPM, "--trainer.presicion=32"], "did you mean --trainer.precision?"),
        ([*CDPM, "--checkpoint", "last"], "did you mean --ckpt_path?"),
        ([*CDPM, "--model.init_args.sampler=lit_medgen.diffusion.DIM"], "did you mean lit_medgen.diffusion.DDIM?"),
        ([*CDPM, "--model=CDMP"], "did you mean lit_medgen.methods.CDPM?"),
        (["fit", "--config", "config/ihdm.yml"], "did you mean configs/ihdm.yaml?"),
        (["fit", "configs/cdpm.yaml"], "did you mean --config configs/cdpm.yaml?"),
        (["fit", "--config", "configs/data/folder.yaml"], "give it with --data configs/data/folder.yaml"),
        (["prepare", "configs/data/folder.yaml"], "did you mean --data configs/data/folder.yaml?"),
        (["prepare", "--data", "configs/demo/cdpm.yaml"], "give it with --config configs/demo/cdpm.yaml"),
        (["prepare", "--data", "configs/data/foldr.yaml"], "did you mean configs/data/folder.yaml?"),
        (["prepare", "--config", "configs/cdmp.yaml"], "did you mean configs/cdpm.yaml?"),
        (["prepare", "--config", "configs/cdpm.yaml", "--verfiy"], "did you mean --verify?"),
        (["prepare"], "give --config FILE or --data FILE"),
        (["phantom", "adno"], "did you mean adni?"),
        (["phantom", "chestxray", "--num_subject", "3"], "did you mean --num_subjects?"),
        (["sweep", "configs/sweeps/ldm_guidance.yaml", "--rseume"], "did you mean --resume?"),
        (["sample"], "give --ckpt_path FILE"),
        (["sample", "--ckpt_path", "last", "--config", "configs/cdpm.yaml"], "--ckpt_path last is for fit"),
        (["evaluate"], "or --samples DIR"),
        (
            ["fit", "--config", "configs/ihdm.yaml", "--model.init_args.conditioning.attributes=[age]"],
            "did you mean --model.init_args.network.covariates.numbers?",
        ),
        ([*CDPM, "--trainer.max_epochs=1"], "give trainer.max_steps"),
        ([*CDPM, "--trainer.min_epochs=2"], "give trainer.min_steps"),
        ([*CDPM, "--trainer.max_steps=-1"], "the run would never end"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_what_was_probably_meant(args: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert meant in one_line(capsys)


@pytest.mark.parametrize(
    ("content", "meant"),
    [
        ({"model": {"init_args": {"netwrok": 3}}}, "--model.init_args.network?"),
        ({"trainer": {"max_step": 3}}, "--trainer.max_steps?"),
        ({"trianer": {"max_steps": 3}}, "--trainer.max_steps?"),
        ({"data": {"init_args": {"preprocessing": {"sizes": [8, 8, 8]}}}}, "--data.init_args.preprocessing.size?"),
        ({"model": {"class_path": "lit_medgen.methods.CDMP"}}, "lit_medgen.methods.CDPM?"),
    ],
)
def test_a_mistyped_key_of_a_file(
    content: dict, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    assert main([*CDPM, f"--config={tmp_path / 'mine.yaml'}"]) == 2
    assert f"did you mean {meant}" in one_line(capsys)


def test_nothing_near_is_not_guessed() -> None:
    assert nearest_key("zebra", ["trainer.max_steps", "name"]) is None
    assert nearest_key("trainer.zebra", ["data.init_args.zebras"]) is None
    assert nearest_class("numpy.ndarray") is None


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--seed=3", "did you mean --seeds?"),
        ("--seeds=[-1]", "--seeds [-1]: give at least one seed, from 0"),
        ("--seeds=[10000000000000000000000]", "to 2**63 - 1"),
        ("--num=-1", "give at least one seed"),
        ("--batch_size=0", "--batch_size is 0; give 1 or more"),
    ],
)
def test_numbers_that_no_sample_has(
    option: str, words: str, trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained.on_checkpoint("sample", f"--out={tmp_path / 'new'}", option) == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "new").exists()


def test_samples_whose_config_is_no_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(": : :")
    assert main(["evaluate", f"--samples={tmp_path}"]) == 2
    assert "config.yaml: not valid YAML" in one_line(capsys)


def test_numbers_that_no_report_has(trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--num=0", "--batch_size=-1"):
        assert trained.on_checkpoint("evaluate", f"--out={tmp_path / 'new'}", option) == 2
        assert "give 1 or more" in one_line(capsys)


def test_a_run_folder_stands_for_its_newest_checkpoint(
    trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = trained.last.parents[1]
    words = ["--trainer.accelerator=cpu", "--num=1"]
    assert main(["sample", f"--ckpt_path={run_folder}", f"--out={tmp_path / 'a'}", *words]) == 0
    assert main(["sample", "--ckpt_path", str(trained.last.parent), f"--out={tmp_path / 'b'}", *words]) == 0
    assert (tmp_path / "a/manifest.csv").read_bytes() == (tmp_path / "b/manifest.csv").read_bytes()
    capsys.readouterr()
    assert main(["sample", f"--ckpt_path={tmp_path}"]) == 2
    assert "no checkpoint in the folder" in one_line(capsys)
    assert main(["sample", f"--ckpt_path={trained.last.with_name('step_9.ckpt')}"]) == 2
    assert str(trained.last.resolve()) in one_line(capsys)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit_medgen {__version__}\n"
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


class Conditioning(Generator):
    """Images of an age, a sex and a dose."""

    optional = ("attributes",)
    attributes = ("age", "sex", "dose")

    def loss(self, batch: object) -> object: ...
    def sample(self, condition: object, seeds: object) -> object: ...


SPEC = DataSpec(1, (8, 8), (1.0, 1.0), attributes={"age": (55.0, 90.0), "sex": (0.0, 1.0)}, codes=("sex",))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"age": 7000}, ["age is 7000", "55 to 90"]),
        ({"age": 53}, ["age is 53", "55 to 90"]),
        ({"age": -70}, ["age is -70"]),
        ({"age": math.inf}, ["age is inf"]),
        ({"sex": 0.5}, ["sex is 0.5", "0 or 1"]),
        ({"sex": 1.04}, ["sex is 1.04", "0 or 1"]),
        ({"height": 170}, ["'height'", "'age'"]),
    ],
)
def test_what_no_training_person_was_like_is_refused(attributes: dict[str, float], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        checked_attributes(Conditioning(), attributes, SPEC)
    assert all(word in str(error.value) for word in words), error.value


def test_what_may_be_asked() -> None:
    found = checked_attributes(Conditioning(), {"age": 91.5, "sex": 1}, SPEC)
    assert found == {"age": 91.5, "sex": 1.0}
    unknown = checked_attributes(Conditioning(), {"age": None, "sex": math.nan}, SPEC)
    assert all(math.isnan(value) for value in unknown.values())


@pytest.mark.parametrize(
    ("config", "option", "words"),
    [
        ("cdpm", "preprocessing.size=[15,16,16]", ["15 x 16", "multiples of 2"]),
        ("cdpm", "view=null", ["view is not set"]),
        ("vqgan", "preprocessing.size=[15,16,16]", ["15 x 16", "multiple of 2"]),
        ("vqgan", "view=null", ["16 x 16 x 16", "dim 2"]),
        ("vqgan", "view.init_args.per_person=99", ["per_person is 99"]),
        ("ihdm", "preprocessing.size=[32,32,32]", ["preprocessing"]),
    ],
)
def test_a_bad_size_is_refused_before_anything_is_prepared(
    config: str, option: str, words: list[str], tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms, (f"configs/{config}.yaml",))
    store = tmp_path / "store"
    assert run.fit(f"--data.init_args.{option}", f"--data.init_args.store_dir={store}") == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert not store.exists()


def test_prepare_refuses_sizes_that_the_method_of_its_config_does_not_take(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms)
    store = f"--data.init_args.store_dir={tmp_path / 'store'}"
    bad = "--data.init_args.preprocessing.size=[15,16,16]"
    assert main(["prepare", *run.configs, *run.options, store, bad]) == 2
    assert "multiples of 2" in one_line(capsys)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_method_is_made_without_memory(path: Path) -> None:
    model = _untrained([yaml.safe_load(path.read_text())["model"]])
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_a_missing_first_stage_is_said_before_anything_is_prepared(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/ihdm.yaml",))
    store = tmp_path / "store"
    assert run.fit("--model.init_args.first_stage=none.ckpt", f"--data.init_args.store_dir={store}") == 2
    assert "first_stage" in one_line(capsys)
    assert not store.exists()


class Refusing:
    """Says what is wrong in the words of the config, from an error of a library's."""

    def __init__(self, sides: int = 3) -> None:
        try:
            {}[sides]
        except KeyError as error:
            raise ValueError(f"data.init_args.sides is {sides}; give 2.") from error


@pytest.mark.parametrize("kind", [Refusing, Refusing | None, list[Refusing]])
def test_the_line_of_a_class_that_refuses_its_arguments_is_its_own(kind: Any) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    named = {"class_path": f"{__name__}.Refusing"}
    config = parser.parse_object({"it": [named] if kind == list[Refusing] else named})
    with pytest.raises(InputError, match=r"^data\.init_args\.sides is 3; give 2\.$"):
        constructed(lambda: parser.instantiate(config))
