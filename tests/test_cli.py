"""The command line: its surface, its precedence, its errors."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from tiny_run import TinyRun

from lit_medgen import methods
from lit_medgen.__main__ import VERBS, main
from lit_medgen.batch import Condition
from lit_medgen.cli import CLI
from lit_medgen.images.dicom import read_series
from lit_medgen.loading import load
from lit_medgen.trainer import Trainer


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error that was printed: exactly one line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0]


def test_surface_is_frozen() -> None:
    ours = {"phantom", "prepare", "compare", "estimate", "export", "readers", "sweep"}
    on_models = {"sample", "app", "evaluate", "detect", "anomalies", "audit", "utility"}
    assert set(VERBS) == {"fit", "validate", "test", *on_models, *ours}
    assert set(CLI.subcommands()) == set(VERBS) - ours


def test_help_is_quick() -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "lit_medgen", "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 2
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize(
    "words",
    [
        "-m lit_medgen --help",
        "-c 'import rich, lit_medgen.__main__ as it; it.main = lambda: rich.print(1); it.program()'",
    ],
    ids=["print", "a bar of rich"],
)
def test_output_that_nobody_reads_is_no_fault(words: str) -> None:
    command = f"{sys.executable} {words} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_sample_needs_no_config_and_says_how_it_was_made(trained: TinyRun, tmp_path: Path) -> None:
    assert trained.on_checkpoint("sample", "--seeds=[5,3]", f"--out={tmp_path}") == 0
    rows = list(csv.DictReader((tmp_path / "manifest.csv").open()))
    assert [row["seed"] for row in rows] == ["5", "3"]
    assert all(len(row["checkpoint_sha256"]) == len(row["config_sha256"]) == 64 for row in rows)
    image = nib.load(tmp_path / rows[0]["file"])
    assert image.shape == (16, 16, 16)
    np.testing.assert_allclose(image.affine[:3, :3], np.diag([12.0] * 3))
    # The file holds what the model makes, in the intensities of the data.
    expected = (load(trained.last).sample(Condition(), [5])[0, 0].numpy() + 1) / 2
    np.testing.assert_allclose(image.get_fdata(), expected, atol=1e-5)


def test_samples_in_dicom_hold_what_those_in_nifti_hold(trained: TinyRun, tmp_path: Path) -> None:
    for format in ("nifti", "dicom"):
        assert trained.on_checkpoint("sample", "--seeds=[5]", f"--format={format}", f"--out={tmp_path / format}") == 0
    image = nib.load(tmp_path / "nifti" / "sample_00000005.nii.gz")
    files = sorted((tmp_path / "dicom" / "sample_00000005").iterdir())
    voxels, affine = read_series(files)
    np.testing.assert_allclose(affine, image.affine, atol=1e-4)
    np.testing.assert_allclose(voxels / 4095, image.get_fdata(), atol=0.5 / 4095 + 1e-5)


def test_samples_do_not_depend_on_batch_size_or_order(trained: TinyRun, tmp_path: Path) -> None:
    volumes = {}
    for name, seeds, batch_size in (("a", "[0,1,2]", 3), ("b", "[2,0,1]", 1), ("c", "[0,1,2]", 3)):
        assert (
            trained.on_checkpoint(
                "sample", f"--seeds={seeds}", f"--batch_size={batch_size}", f"--out={tmp_path / name}"
            )
            == 0
        )
        volumes[name] = [nib.load(tmp_path / name / f"sample_{seed:08d}.nii.gz").get_fdata() for seed in (0, 1, 2)]
    assert np.array_equal(volumes["a"], volumes["c"])
    np.testing.assert_allclose(volumes["a"], volumes["b"], atol=1e-4)


def test_command_line_beats_config_beats_checkpoint(trained: TinyRun, tmp_path: Path) -> None:
    key = "model.init_args.sampler.init_args.num_steps"
    overlay = tmp_path / "three.yaml"
    overlay.write_text("model: {init_args: {sampler: {init_args: {num_steps: 3}}}}")
    found = {}
    for name, more in (
        ("checkpoint", []),
        ("config", ["--config", str(overlay)]),
        ("line", ["--config", str(overlay), f"--{key}=4"]),
    ):
        out = tmp_path / name
        assert trained.on_checkpoint("sample", "--num=1", f"--out={out}", *more) == 0
        found[name] = yaml.safe_load((out / "config.yaml").read_text())["model"]["init_args"]["sampler"]["init_args"][
            "num_steps"
        ]
    assert found == {"checkpoint": 2, "config": 3, "line": 4}


def test_samples_are_evaluated_without_a_checkpoint(trained: TinyRun, tmp_path: Path) -> None:
    assert trained.on_checkpoint("sample", "--num=2", f"--out={tmp_path / 's'}") == 0
    assert (
        main(["evaluate", "--samples", str(tmp_path / "s"), "--out", str(tmp_path / "r"), "--trainer.accelerator=cpu"])
        == 0
    )
    assert "| ms_ssim |" in (tmp_path / "r" / "report.md").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense"], ["nonsense", "prepare"]),
        (["fit", "--config", "configs/none.yaml"], ["configs/none.yaml"]),
        (["fit", "--config", "configs/cdpm.yaml", "--trainer.max_epoch=3"], ["max_epoch"]),
        (["fit", "--config", "configs/cdpm.yaml", "--data.init_args.batch_sise=3"], ["batch_sise"]),
        (["fit", "--config", "configs/cdpm.yaml", "--trainer.max_steps=many"], ["trainer.max_steps", "many"]),
        (
            ["fit", "--config", "configs/cdpm.yaml", "--data.init_args.fractions=[0.5,0.1,0.1]"],
            ["fractions", "sum to 1"],
        ),
        (
            ["fit", "--config", "configs/cdpm.yaml"],
            ["data.init_args.root", "data/adni", "ida.loni.usc.edu", "demo/cdpm.yaml"],
        ),
        (["fit", "--config", "configs/cdpm.yaml", "--ckpt_path=none.ckpt"], ["--ckpt_path", "none.ckpt"]),
        (
            ["fit", "--config", "configs/cdpm.yaml", "--model.init_args.scheme=Hierarchi"],
            ["model.scheme: Hierarchi", "names no class", "path"],
        ),
        (
            ["fit", "--config", "configs/cdpm.yaml", "--model.init_args.scheme.num_target=x"],
            ["model.scheme.num_target"],
        ),
        (["sample"], ["model"]),
        (["phantom", "lungs"], ["lungs", "adni"]),
        (["prepare", "--config", "none.yaml"], ["none.yaml"]),
        (["evaluate", "--samples", "none"], ["--samples: no folder 'none'", "that `sample` wrote", "--config FILE"]),
        (["utility", "--samples=tests"], ["--samples: no config.yaml in 'tests'", "that `sample` wrote"]),
        (["estimate"], ["required: data, model; give --config FILE"]),
        (
            ["estimate", "--config", "configs/ddpm_2d.yaml", "--gpus=H100"],
            ["gpus: expected a list, written as '[a,b]'"],
        ),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_bad_words_get_one_line(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line


def test_wrong_key_in_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("model: {init_args: {netwrok: 3}}")
    assert main(["fit", "--config", "configs/cdpm.yaml", "--config", str(file)]) == 2
    assert "netwrok" in one_line(capsys)


def test_size_that_does_not_fit_the_network(tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TinyRun(tmp_path, phantoms).fit("--data.init_args.preprocessing.size=[15,16,16]") == 2
    assert "15 x 16" in (line := one_line(capsys))
    assert "preprocessing.size" in line
    assert "multiples of 2" in line


@pytest.mark.parametrize("known", [True, False])
def test_checkpoint_of_another_method(
    known: bool,
    trained: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = torch.load(trained.last, weights_only=True)
    checkpoint["lit_medgen"]["config"]["model"]["class_path"] = "lit_medgen.methods.Other"
    other = tmp_path / "other.ckpt"
    torch.save(checkpoint, other)
    if known:  # a method of this version, but not the one that the config asks for
        monkeypatch.setattr(
            methods, "Other", type("Other", (methods.CDPM,), {"__module__": methods.__name__}), raising=False
        )
    assert trained.fit(f"--ckpt_path={other}") == 2
    line = one_line(capsys)
    assert "other.ckpt" in line
    assert "Other" in line


@pytest.mark.parametrize("fault", ["cut", "foreign", "code"])
def test_bad_checkpoint(fault: str, trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.ckpt"
    if fault == "cut":
        bad.write_bytes(trained.last.read_bytes()[:5000])
    elif fault == "foreign":
        torch.save({"state_dict": {}}, bad)
    else:
        checkpoint = torch.load(trained.last, weights_only=True)
        checkpoint["lit_medgen"]["config"]["model"] = {
            "class_path": "os.system",
            "init_args": {"command": "touch hacked"},
        }
        torch.save(checkpoint, bad)
    assert main(["sample", "--ckpt_path", str(bad)]) == 2
    assert "bad.ckpt" in one_line(capsys)


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        main(["nonsense", "--debug"])


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("--num=1",), r"1 samples, .*give at least 2 of each .*.*--num .*fractions"),
        (("--features=nowhere.pt",), r"nowhere\.pt: not a TorchScript file"),
        (("--data.init_args.preprocessing.size=[16,16,8]",), r"its images have size .*those of the data have"),
        (("--data.init_args.preprocessing.size=[4,4,4]",), r"preprocessing\.size: .*every side must be at least 7"),
    ],
)
def test_evaluate_refuses_before_it_samples(
    words: tuple[str, ...],
    refusal: str,
    trained: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "_write_samples", lambda *_: pytest.fail("samples were made"))
    more = (f"--data.init_args.store_dir={tmp_path}", f"--out={tmp_path / 'report'}", *words)
    assert trained.on_checkpoint("evaluate", *more) == 2
    assert re.search(refusal, one_line(capsys))


def test_a_report_that_cannot_be_is_refused_before_training(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms)
    assert run.fit("--config", "configs/with/report.yaml", "--data.init_args.fractions=[0.9,0.1,0.0]") == 2
    assert "0 test and" in one_line(capsys)
    assert not list(tmp_path.glob("*/checkpoints/*.ckpt"))
