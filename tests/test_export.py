"""Exported models: the same images in our hands and in MONAI's, nothing of people, and one line for each fault."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from canaries import holding
from tiny_run import ROOT, TinyRun, group_of, one_line, run_of
from torch import Tensor, nn

import lit_medgen
from lit_medgen.__main__ import main
from lit_medgen.batch import Condition
from lit_medgen.checkpoints import FACTS
from lit_medgen.errors import InputError
from lit_medgen.export.shareable import shareable
from lit_medgen.export.torchscript import Call, trace
from lit_medgen.export.verb import FORMATS
from lit_medgen.exported import CONFIG, WEIGHTS, as_json, exported_weights, from_json
from lit_medgen.files import file_hash
from lit_medgen.training.frozen import FrozenPart
from lit_medgen.training.method import Method

ALONE, BUILT, LABELLED = "configs/ddpm_2d.yaml", "configs/ldm_2d.yaml", "configs/lsdm.yaml"
"""A method without a first stage, one with it, and one that is made from label maps besides."""
EACH = tuple(pytest.param(base, marks=pytest.mark.xdist_group(group_of(base))) for base in (ALONE, BUILT))
OF_ALONE = pytest.mark.xdist_group(group_of(ALONE))
SEEDS = [3, 8]


def exported(run: TinyRun, out: Path, *more: str) -> Path:
    """A folder that the verb wrote."""
    assert main(["export", "--ckpt_path", str(run.last), "--out", str(out), *more]) == 0
    return out


def images(model: Any) -> Tensor:
    found: Tensor = model.sample(Condition(), SEEDS)
    return found


# Round trips.


@pytest.mark.parametrize("base", EACH)
def test_a_folder_makes_the_images_of_its_checkpoint(base: str, phantoms: Path, tmp_path: Path) -> None:
    run = run_of(phantoms, (base,))
    folder = exported(run, tmp_path / "first" / "zoo" / "tiny")
    shutil.move(tmp_path / "first", tmp_path / "second")  # whatever place it was written to
    folder = tmp_path / "second" / "zoo" / "tiny"
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == ["README.md", CONFIG, WEIGHTS]
    torch.testing.assert_close(images(lit_medgen.load(folder)), images(lit_medgen.load(run.last)), atol=1e-5, rtol=0)
    out = tmp_path / "samples"
    words = [f"--ckpt_path={folder}", "--trainer.accelerator=cpu", "--num=1", f"--out={out}"]
    assert main(["sample", *words]) == 0
    (row,) = csv.DictReader((out / "manifest.csv").open())
    assert row["checkpoint_sha256"] == json.loads((folder / CONFIG).read_text())["weights_sha256"]


@pytest.mark.parametrize("base", EACH)
def test_monai_makes_the_same_images(base: str, phantoms: Path, tmp_path: Path) -> None:
    from monai import bundle  # seconds

    run = run_of(phantoms, (base,))
    folder = exported(run, tmp_path / "tiny", "--format=bundle")
    expected = images(lit_medgen.load(run.last))
    network = bundle.load("tiny", bundle_dir=tmp_path, workflow_type="inference", device="cpu")
    found = network(torch.tensor(SEEDS, dtype=torch.float32)[:, None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    place = {"config_file": str(folder / "configs/inference.json"), "bundle_root": str(folder)}
    bundle.run(**place, seeds=SEEDS, device="cpu")
    assert len(list((folder / "samples").glob("sample_*"))) == len(SEEDS)
    meta = {"meta_file": str(folder / "configs/metadata.json"), "config_file": place["config_file"]}
    bundle.verify_net_in_out("network", **meta, device="cpu")  # shape and type are those that the metadata says


REQUIRED = {
    "schema",
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
}
"""What MONAI's schema of 25 July 2024 asks for; of a tensor of the network likewise."""
OF_TENSOR = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
}


@OF_ALONE
def test_metadata_is_as_the_schema_asks(phantoms: Path, tmp_path: Path) -> None:
    words = ("--format=bundle", "--license=CC-BY-4.0", "--intended_use=to test")
    folder = exported(run_of(phantoms, (ALONE,)), tmp_path / "tiny", *words)
    meta = json.loads((folder / "configs/metadata.json").read_text())
    assert meta.keys() >= REQUIRED
    texts = REQUIRED - {"required_packages_version", "network_data_format"}
    assert all(isinstance(meta[name], str) for name in texts | {"intended_use"})
    (image,), (pred,) = (meta["network_data_format"][side].values() for side in ("inputs", "outputs"))
    for tensor in (image, pred):
        assert all(isinstance(tensor[name], kind) for name, kind in OF_TENSOR.items())
    assert pred["spatial_shape"] == list(lit_medgen.load(run_of(phantoms, (ALONE,)).last).needed_spec().size)
    assert (folder / "LICENSE").read_text().endswith("CC-BY-4.0\n")
    exported(run_of(phantoms, (ALONE,)), folder, "--format=bundle")
    assert not (folder / "LICENSE").exists()  # nobody states one


@pytest.mark.parametrize("base", EACH)
def test_torchscript_gives_what_the_network_gives(base: str, phantoms: Path, tmp_path: Path) -> None:
    run = run_of(phantoms, (base,))
    folder = exported(run, tmp_path / "tiny", "--format=torchscript")
    about = json.loads((folder / "network.json").read_text())
    assert about["sha256"] == file_hash(folder / "network.pt")
    shapes = [entry["shape"] for entry in about["inputs"].values()]
    inputs = [torch.rand(3 if num == "b" else num, *shape) for num, *shape in shapes]
    model: Any = lit_medgen.load(run.last)
    (x, t, *values), (_, _, *names) = inputs, about["inputs"]
    attributes = dict(zip((name.removeprefix("attributes.") for name in names), values, strict=True))
    with torch.no_grad():
        expected = model.denoiser.network(x, t, Condition(attributes))
        torch.testing.assert_close(torch.jit.load(folder / "network.pt")(*inputs), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.xdist_group(group_of(LABELLED))
def test_torchscript_of_lsdm_reads_label_maps(phantoms: Path, tmp_path: Path) -> None:
    """Maps of other classes, and other images, than it was traced with."""
    run = run_of(phantoms, (LABELLED,))
    folder = exported(run, tmp_path / "tiny", "--format=torchscript")
    inputs = json.loads((folder / "network.json").read_text())["inputs"]
    assert [*inputs] == ["x", "t", "label_map"]
    assert inputs["label_map"]["dtype"] == "int64"
    network, model = torch.jit.load(folder / "network.pt"), cast(Any, lit_medgen.load(run.last))
    (_, *of_x), (_, *of_map) = inputs["x"]["shape"], inputs["label_map"]["shape"]
    x, t, label_map = torch.randn(3, *of_x), torch.rand(3), torch.randint(len(model.spec.classes), (3, *of_map))
    with torch.no_grad():
        expected = model.denoiser.network(x, t, Condition(label_map=label_map))
        torch.testing.assert_close(network(x, t, label_map), expected, atol=1e-5, rtol=1e-4)


class Branching(nn.Module):
    """A network whose graph depends on what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_told() -> None:
    with pytest.raises(ValueError, match="differs by"):
        trace(Branching(), (torch.full((2, 1, 4), 1e-3),), num_others=3)
    with pytest.raises(ValueError, match="takes a list"):
        Call(Branching(), (torch.zeros(2), [])).inputs()


def test_plain_data_comes_back_as_it_was() -> None:
    tensors: dict[str, Tensor] = {}
    value = {"a": (1, [2.5, None]), "b": {1: "x", "y": (True,)}, "c": {"d": torch.arange(3)}, "e": {"$e": ("s",)}}
    found = from_json(json.loads(json.dumps(as_json(value, tensors))), tensors)
    assert [*tensors] == ["record/c/d"]
    assert torch.equal(found.pop("c")["d"], value.pop("c")["d"])  # type: ignore[attr-defined]
    assert found == value
    with pytest.raises(InputError, match="record/a: a set"):
        as_json({"a": {1}}, {})


@pytest.mark.xdist_group(group_of(BUILT))
def test_a_first_stage_may_be_a_folder(phantoms: Path, tmp_path: Path) -> None:
    run = run_of(phantoms, ("configs/autoencoder_kl_2d.yaml",))
    folder = exported(run, tmp_path / "stage")
    part = FrozenPart(folder, Method, "make").read("first_stage", None)
    whole: Any = lit_medgen.load(run.last).as_frozen_part()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in part.state_dict().items())


# Nothing of people, folders or the machine.

NAME, HOME, TABLE, COMMAND = "Zuckermann-Quast", "/home/moorhuhn/ward_kirschbaum", "tableheckmeck", "stripheckmeck"
CANARIES = (NAME, "moorhuhn", "kirschbaum", TABLE, COMMAND, str(ROOT), "codeheckmeck")


def with_canaries(checkpoint: Path, path: Path) -> Path:
    """A checkpoint whose config, and those of its parts, name people, folders and commands wherever they can."""
    content = torch.load(checkpoint, weights_only=True)

    def spoil(record: dict[str, Any]) -> None:
        record["config"]["name"] = NAME
        data = record["config"]["data"]["init_args"]
        data |= {"root": f"{HOME}/{NAME}", "store_dir": HOME, "table": f"{TABLE}.csv", "exclude": f"{NAME}.txt"}
        data |= {"split_files": {"train": f"{HOME}/train.txt"}, "text": f"{HOME}/texts.safetensors"}
        data["preprocessing"] = {
            **data["preprocessing"],
            "raw_head": {"strip": f"{HOME}/{COMMAND} {{input}} {{output}}"},
        }
        arguments = record["config"]["model"]["init_args"]
        for part, inner in record["frozen"].items():
            arguments[part] = f"{HOME}/{NAME}/checkpoints/last.ckpt"
            spoil(inner)
        record["spec"] |= {"text_encoder": f"{HOME}/encoder", "left_out": NAME, "people_sums": {"val": NAME}}

    spoil(content[FACTS])
    content["callbacks"] = {"codes": "codeheckmeck"}
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("base", "format"),
    [
        pytest.param(base, format, marks=pytest.mark.xdist_group(group_of(base)))
        for base, format in ((BUILT, "safetensors"), (ALONE, "bundle"), (BUILT, "torchscript"))
    ],
)
def test_nothing_of_people_or_machine_leaves(base: str, format: str, phantoms: Path, tmp_path: Path) -> None:
    path = with_canaries(run_of(phantoms, (base,)).last, tmp_path / NAME / "last.ckpt")
    report = {
        "source": str(path),
        "name": NAME,
        "method": lit_medgen.load(path).__class__.__name__,
        "num_samples": 4,
        "people": {"test": [2, 3]},
        "metrics": {"ms_ssim": {"value": 0.5, "ci95": [0.4, 0.6], "real_vs_real": 0.7, "best": "real"}},
        "warnings": [NAME],
    }
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(json.dumps(report))
    out = tmp_path / "out"
    words = ["--ckpt_path", str(path), "--out", str(out / "tiny"), f"--report={tmp_path}", f"--format={format}"]
    assert main(["export", *words]) == 0
    assert not holding(CANARIES, out)
    card = next(out.rglob("README.md")).read_text()
    assert "| ms_ssim → real | 0.5 | 0.4 to 0.6 | 0.7 |" in card
    assert card.count("not stated;") == 2
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"
    if format == "safetensors":
        assert lit_medgen.load(out / "tiny").config["name"] == "tiny"  # it is still a model


def test_data_of_a_class_of_the_owners_own_stays_behind() -> None:
    config = {
        "name": "n",
        "model": {"class_path": "m"},
        "data": {"class_path": "clinic.Ward", "init_args": {"root": "r"}},
    }
    found = shareable({"config": config, "spec": None, "facts": {}, "frozen": {}}, "tiny")
    assert found["config"] == {"name": "tiny", "model": {"class_path": "m", "init_args": {}}, "data": None}


# Faults.


@OF_ALONE
def test_faults_are_one_line(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(phantoms, (ALONE,))
    folder = exported(run, tmp_path / "zoo" / "tiny")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "README.md").write_text("mine")
    audit = tmp_path / "audit"
    audit.mkdir()
    (audit / "report.json").write_text(json.dumps({"method": "WGAN", "copies": {}}))
    larger = tmp_path / "larger"
    larger.mkdir()
    (larger / "report.json").write_text(json.dumps({"parameters": 10**9, "metrics": {"ssim": {}}}))
    to = ["export", f"--ckpt_path={run.last}"]
    for words, expected in (
        (["export", f"--out={taken}"], "--ckpt_path FILE is missing"),
        (["export", "--ckpt_path=nowhere", f"--out={taken / 'in'}"], "no file 'nowhere'"),
        ([*to, f"--out={taken}"], f"{taken / 'README.md'}: not written by this verb"),
        ([*to, f"--out={tmp_path / 'new'}", "--format=onnx"], "--format is 'onnx'; choose from safetensors, bundle"),
        ([*to, f"--out={tmp_path / 'new'}", f"--report={taken}"], "--report: no report.json"),
        ([*to, f"--out={tmp_path / 'new'}", f"--audit={audit}"], "--audit: a report of WGAN, but"),
        ([*to, f"--out={tmp_path / 'new'}", f"--report={larger}"], "a model of 1,000,000,000 parameters, but the"),
        ([*to, f"--out={tmp_path / 'new'}", "--licence=MIT"], "did you mean --license?"),
        (["sample", f"--ckpt_path={tmp_path / 'zoo'}"], f"e.g. {folder}"),
        (["fit", f"--ckpt_path={folder}"], "an exported model, without the optimizer"),
    ):
        assert main(words) == 2, words
        assert expected in one_line(capsys), words
    assert not (tmp_path / "new").exists()
    assert (taken / "README.md").read_text() == "mine"


@OF_ALONE
def test_an_export_that_fails_leaves_the_earlier_one(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(phantoms, (ALONE,))
    folder = exported(run, tmp_path / "zoo" / "tiny")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fails(folder: Path, *_: Any) -> None:
        (folder / CONFIG).write_text("{}")
        raise InputError("cannot be traced.")

    monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], write=fails))
    for out in (folder, tmp_path / "zoo" / "new"):
        assert main(["export", f"--ckpt_path={run.last}", f"--out={out}", "--format=torchscript"]) == 2
        assert "cannot be traced" in one_line(capsys)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list((tmp_path / "zoo").iterdir()) == [folder]


@OF_ALONE
def test_other_weights_than_the_config_names_are_refused(phantoms: Path, tmp_path: Path) -> None:
    folder = exported(run_of(phantoms, (ALONE,)), tmp_path / "tiny")
    path = exported_weights(folder)
    assert path is not None
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{CONFIG} beside it names"):
        lit_medgen.load(folder)
    (folder / CONFIG).write_text("{}")
    with pytest.raises(InputError, match="not what `export` wrote"):
        lit_medgen.load(folder)
