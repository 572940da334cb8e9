"""What is printed: where a run lies, how far it is, what was written; help on one screen; launchers and W&B."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun, one_line

from lit_medgen.__main__ import main
from lit_medgen.errors import InputError
from lit_medgen.loggers import WandbRun
from lit_medgen.methods.cdpm.schemes import Autoregressive, Hierarchy
from lit_medgen.trainer import Trainer


def test_a_run_says_where_it_lies_and_counts_its_steps(
    tmp_path: Path,
    phantoms: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    run = TinyRun(tmp_path, phantoms)
    shown = ["--trainer.enable_progress_bar=true", "--trainer.enable_model_summary=true", "--ckpt_path=last"]
    for steps in (2, 5):
        assert run.fit(*shown, f"--trainer.max_steps={steps}", "--trainer.val_check_interval=1") == 0
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        assert any(line.startswith(f"run folder: {tmp_path / 'cdpm'}") for line in lines)
        assert lines[-1].startswith(f"{steps} steps done; {tmp_path / 'cdpm'}: checkpoints/, config.yaml")
        assert f" {steps}/{steps} " in printed.out
        assert not any(word in printed.out + printed.err for word in ("Epoch", "FLOPs", "Please add"))
        assert "CDPM: 58,945 parameters are trained" in printed.out
    assert run.on_checkpoint("sample", "--num=1", f"--out={tmp_path / 'out'}") == 0
    assert not [str(warned.message) for warned in recwarn if "callbacks" in str(warned.message)]


@pytest.mark.parametrize("verb", ["sample", "fit", "evaluate"])
def test_help_is_one_screen_with_the_own_options_first(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    assert options.index("--ckpt_path") < options.index("--model") < options.index("--trainer.<name>")
    if verb == "sample":
        assert {"--num", "--seeds", "--attributes", "--out", "--format"} < set(options)


def test_all_keys_are_still_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sample", "--help=all"])
    assert "--trainer.precision" in capsys.readouterr().out


def test_drawing_phantoms_shows_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", "adni", "--out", str(tmp_path), "--num_subjects", "1"]) == 0
    assert "100%" in capsys.readouterr().out


def test_another_scheme_of_the_readme_is_another() -> None:
    """The demo samples in the order of `Hierarchy`."""
    assert Hierarchy(12, 8).stages(32) != Autoregressive(12, 8).stages(32)


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of one of four processes on two machines."""
    facts = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 4, "RANK": 0, "LOCAL_RANK": 0}
    for name, value in facts.items():
        monkeypatch.setenv(name, str(value))


def test_torchrun_on_cpus_takes_its_processes(torchrun: None) -> None:
    trainer: Any = Trainer(strategy="ddp", devices="auto", accelerator="cpu", logger=False)
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size) == (2, 2, 4)


def test_torchrun_with_other_devices_is_one_line(torchrun: None) -> None:
    with pytest.raises(InputError, match=r"devices=1.*world size \(4\).*configs/with/ddp\.yaml"):
        Trainer(strategy="ddp", devices=1, accelerator="cpu", logger=False)


def test_wandb_without_a_key_is_one_line(
    tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    run = TinyRun(tmp_path, phantoms, ("configs/cdpm.yaml", "configs/with/wandb.yaml"))
    wandb.teardown()  # what it knows of another test's environment
    assert run.fit(f"--trainer.logger.init_args.save_dir={tmp_path}") == 2
    wandb.teardown()
    line = one_line(capsys)
    assert "wandb login" in line
    assert "WANDB_MODE=offline" in line


def test_wandb_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'pip install "lit_medgen\[wandb\]"'):
        WandbRun()
