"""First and second stage: what is kept in a checkpoint, codes kept beside the data, one-line errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from tiny_run import ROOT, TWO_STAGES, TinyRun, first_stage, frozen_parts, one_line

import lit_medgen
from data_modules import ADNIDataModule, OneSlice, Preprocessing
from data_modules.store import Store
from lit_medgen.__main__ import main
from lit_medgen.batch import Condition
from lit_medgen.methods import IHDM
from lit_medgen.training.frozen import weights_hash
from lit_medgen.training.latents import LatentStore


@pytest.fixture(scope="module")
def ihdm(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> TinyRun:
    """A tiny IHDM after two steps."""
    run = TinyRun(tmp_path_factory.mktemp("ihdm"), phantoms, ("configs/ihdm.yaml",))
    assert run.fit() == 0
    return run


@pytest.fixture(scope="module")
def data(phantoms: Path) -> ADNIDataModule:
    """What the tiny runs train on."""
    module = ADNIDataModule(
        str(phantoms),
        preprocessing=Preprocessing(size=(16, 16, 16), field_of_view_mm=(192, 192, 192)),
        view=OneSlice(8, 2),
        store_dir=str(phantoms / "store"),
        num_jobs=1,
        fractions=(0.5, 0.1, 0.4),
        seed=3,
    )
    module.prepare_data()
    module.setup("fit")
    return module


def test_one_file_samples_without_its_first_stage(ihdm: TinyRun, tmp_path: Path) -> None:
    """What the path in the config holds does not matter any more."""
    model: Any = lit_medgen.load(ihdm.last)
    before = model.sample(Condition(), [3, 4])
    out = tmp_path / "samples"
    assert ihdm.on_checkpoint("sample", "--num=2", f"--out={out}", "--model.init_args.first_stage=nowhere") == 0
    assert len(list(out.glob("*.png"))) == 2
    kept = torch.load(ihdm.last, weights_only=True)
    theirs = torch.load(first_stage_of(ihdm), weights_only=True)["state_dict"]
    for name, value in theirs.items():
        if not name.startswith("discriminator."):
            assert torch.equal(kept["state_dict"][f"first_stage.{name}"], value)
    assert not any(name.startswith("first_stage.") for name in kept["callbacks"]["EMA"]["raw"])  # stored once
    assert not any("discriminator" in name for name in kept["state_dict"])
    torch.testing.assert_close(before, lit_medgen.load(ihdm.last).sample(Condition(), [3, 4]))


def first_stage_of(run: TinyRun) -> Path:
    return Path(next(option for option in run.options if "first_stage" in option).partition("=")[2])


def test_samples_do_not_depend_on_the_batch(ihdm: TinyRun) -> None:
    model = lit_medgen.load(ihdm.last)
    both = model.sample(Condition(), [5, 6])
    torch.testing.assert_close(both[1:], model.sample(Condition(), [6]), atol=1e-4, rtol=0)


def test_codes_are_those_of_the_first_stage_and_kept(phantoms: Path, data: ADNIDataModule, tmp_path: Path) -> None:
    model: Any = lit_medgen.load(first_stage(phantoms))
    path = tmp_path / "codes.npy"
    LatentStore.make(model, data, path)
    table = LatentStore(path)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(table(batch), model.kept(batch.image))
    written = path.stat().st_mtime_ns
    LatentStore.make(model, data, path)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-50])  # cut off
    LatentStore.make(model, data, path)
    assert torch.equal(LatentStore(path)(batch), table(batch))


def test_a_second_stage_reads_codes_in_place_of_images(
    ihdm: TinyRun, phantoms: Path, data: ADNIDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader's batches hold the codes of the slices that would have been read; a whole run reads no image."""
    model: Any = lit_medgen.load(first_stage(phantoms))
    LatentStore.make(model, data, tmp_path / "codes.npy")
    read = next(iter(data.train_dataloader()))
    data.read_latents(LatentStore(tmp_path / "codes.npy"))
    found = next(iter(data.train_dataloader()))
    assert found.image.shape == (len(read.key), 0)
    assert (found.key, read.latent) == (read.key, None)
    assert found.latent is not None
    assert torch.equal(found.latent, model.kept(read.image))
    assert next(iter(data.test_dataloader())).latent is None  # of them none are kept
    data.read_latents(None)
    assert next(iter(data.train_dataloader())).latent is None

    def refuse(*_: Any) -> Any:
        raise AssertionError("an image is read")

    monkeypatch.setattr(Store, "read", refuse)
    assert TinyRun(tmp_path, phantoms, ("configs/ihdm.yaml",)).fit() == 0  # its codes were made by the run before


def test_address_of_codes_follows_weights_data_and_slices(phantoms: Path, data: ADNIDataModule) -> None:
    model: Any = lit_medgen.load(first_stage(phantoms))
    before = LatentStore.address(model, data)
    assert LatentStore.address(model, data) == before
    data.view = OneSlice(7, 2)
    assert LatentStore.address(model, data) != before
    data.view = OneSlice(8, 2)
    next(model.parameters()).data[0] += 1
    assert LatentStore.address(model, data) != before


@pytest.mark.parametrize("config", TWO_STAGES, ids=lambda config: Path(config).stem)
def test_missing_first_stage_says_how_to_make_it(
    config: str, tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms, (config,))
    ((part, made_by),) = frozen_parts(config).items()
    assert run.fit(f"--model.init_args.{part}=nowhere.ckpt") == 2
    line = one_line(capsys)
    assert f"model.init_args.{part}: no file 'nowhere.ckpt'" in line
    assert f"fit --config {made_by}" in line


def test_first_stage_of_another_method_is_refused(
    ihdm: TinyRun, tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/absorbing.yaml",))
    assert run.fit(f"--model.init_args.first_stage={ihdm.last}") == 2
    assert "is a checkpoint of IHDM, not of VQGAN" in one_line(capsys)


def test_other_images_than_the_first_stage_knows_are_refused(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/ihdm.yaml",))
    assert run.fit("--data.init_args.preprocessing.size=[20,16,16]") == 2
    assert "data.init_args.preprocessing.size is" in one_line(capsys)
    assert run.fit("--data.init_args.seed=4") == 2
    assert "the same people are unseen" in one_line(capsys)


def test_a_changed_first_stage_is_noticed_on_resuming(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = TinyRun(tmp_path / "vqgan", phantoms, ("configs/vqgan.yaml",))
    assert other.fit() == 0
    path = tmp_path / "first.ckpt"
    shutil.copy(other.last, path)
    run = TinyRun(tmp_path / "ihdm", phantoms, ("configs/ihdm.yaml",))
    where = f"--model.init_args.first_stage={path}"
    assert run.fit(where) == 0
    assert other.fit("--ckpt_path=last", "--trainer.max_steps=3") == 0  # the first stage is trained on
    shutil.copy(other.last, path)
    capsys.readouterr()
    assert run.fit(where, "--ckpt_path=last", "--trainer.max_steps=3") == 2
    assert "first.ckpt holds other weights" in one_line(capsys)
    path.unlink()
    assert run.fit(where, "--ckpt_path=last", "--trainer.max_steps=3") == 0  # with the copy that the run holds
    kept = [torch.load(run.last.with_name(f"step_000000{step}.ckpt"), weights_only=True) for step in (2, 3)]
    for name in kept[0]["state_dict"]:
        if name.startswith("first_stage."):
            assert torch.equal(kept[0]["state_dict"][name], kept[1]["state_dict"][name])


def test_levels_that_were_not_learned_are_refused(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/ihdm.yaml",))
    assert run.fit("--model.init_args.num_steps=1") == 0
    for words, text in (
        ("--model.init_args.num_steps=2", "has learned the last level alone"),
        ("--model.init_args.schedule.init_args.max_blur=3", "another than this model was trained with"),
    ):
        assert run.on_checkpoint("sample", "--num=1", f"--out={tmp_path / 'out'}", words) == 2
        assert text in one_line(capsys)


def test_a_bare_file_name_is_no_class(tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/ihdm.yaml",))
    shutil.copy(first_stage(phantoms), ROOT / "bare.ckpt")
    try:
        assert run.fit("--model.init_args.first_stage=bare.ckpt") == 0
        assert run.on_checkpoint("sample", "--num=1", f"--out={tmp_path / 'out'}") == 0
    finally:
        (ROOT / "bare.ckpt").unlink()


def test_testing_without_a_checkpoint_is_one_line(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/ihdm.yaml",))
    words = [*run.configs, *run.options, f"--trainer.default_root_dir={tmp_path}"]
    assert main(["test", *words]) == 2
    assert "give --ckpt_path" in one_line(capsys)


def test_unknown_attribute_is_refused(tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/ihdm.yaml",))
    assert run.fit("--model.init_args.network.covariates.numbers=[shoe_size]") == 2
    assert "no 'shoe_size' in the data, which has 'age_years'" in one_line(capsys)


def test_told_attributes_are_trained_and_guide(tmp_path: Path, phantoms: Path) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/absorbing.yaml",))
    guided = [
        "--model.init_args.network.covariates.numbers=[age_years]",
        "--model.init_args.network.covariates.categories={sex: 2}",
        "--model.init_args.conditioning.guidance_scale=2",
    ]
    assert run.fit(*guided, "--config", "configs/with/report.yaml") == 0
    assert next(run.folder.glob("*/report/report.json")).is_file()
    out = tmp_path / "samples"
    assert run.on_checkpoint("sample", "--num=1", f"--out={out}", '--attributes={"age_years": 70}') == 0
    with (out / "manifest.csv").open(newline="") as file:
        assert [json.loads(row["condition"]) for row in csv.DictReader(file)] == [{"age_years": 70}]
    assert run.on_checkpoint("evaluate", "--num=4", f"--out={tmp_path / 'report'}") == 0
    own = json.loads((tmp_path / "report" / "report.json").read_text())["own"]
    assert {"condition_effect", "condition_effect_age_years", "condition_effect_sex", "condition_gain"} <= set(own)
    assert own["condition_effect"]["num"] > 0
    with (tmp_path / "report" / "samples" / "manifest.csv").open(newline="") as file:
        asked = [json.loads(row["condition"]) for row in csv.DictReader(file)]
    assert len(asked) == 4
    assert len({condition["age_years"] for condition in asked}) == 2  # two slices of each of two people
    model: Any = lit_medgen.load(run.last)
    low, high = model.spec.attributes["age_years"]
    conditioning = model.scaled(Condition(attributes={"age_years": torch.tensor([low, high, torch.nan])}))
    torch.testing.assert_close(
        conditioning.attributes["age_years"], torch.tensor([0.0, 1.0, torch.nan]), equal_nan=True
    )
    state = torch.full((3, 8, 8), model.process.mask)
    with torch.no_grad():
        guided = model.guided_logits(state, torch.full((3,), 256), conditioning, 2.0)
        time = torch.zeros(3)
        plain, null = model.network(state, time, conditioning), model.network(state, time, Condition())
    torch.testing.assert_close(guided, null + 2 * (plain - null))
    torch.testing.assert_close(guided[2], null[2])  # nothing asked for, nothing to guide to


def test_attributes_that_a_model_does_not_know_are_refused(
    ihdm: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ihdm.on_checkpoint("sample", f"--out={tmp_path}", '--attributes={"age_years": 70}') == 2
    assert "IHDM is not made from 'age_years', but from no attributes" in one_line(capsys)


def test_reconstructions_of_patients_are_not_called_synthetic(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt_path", str(first_stage(phantoms)), "--trainer.accelerator=cpu", "--num=1"]
    assert main(["sample", *words, "--format=dicom", f"--out={tmp_path}"]) == 0
    assert "1 reconstructions of patients' images" in capsys.readouterr().out
    (path,) = tmp_path.glob("reconstruction_00000000/*.dcm")
    data = pydicom.dcmread(path)
    assert data.get("SyntheticData") != "YES"
    assert "derived from a patient's image" in data.ImageComments
    assert not list(tmp_path.glob("sample_*"))


def test_hash_sees_every_weight() -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 3)
    before = weights_hash(network)
    assert weights_hash(network) == before
    network.bias.data[1] += 1e-6
    assert weights_hash(network) != before


def test_one_prior_is_one_blurred_map(ihdm: TinyRun) -> None:
    model = lit_medgen.load(ihdm.last)
    assert isinstance(model, IHDM)
    assert model.prior is not None
    assert model.prior.shape == (1, 4, 8, 8)
    # sigma = 24 places on a map of 8 leaves nothing but the mean
    np.testing.assert_allclose(model.prior, model.prior.mean((2, 3), keepdim=True).expand_as(model.prior), atol=1e-4)
