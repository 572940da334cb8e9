"""A network, a data module and a method of the user's own, as docs/own_classes.md writes them, all the way."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_resume import assert_equal
from tiny_run import ROOT, TinyRun, one_line

import lit_medgen
from lit_medgen.__main__ import main
from lit_medgen.batch import Condition
from lit_medgen.errors import InputError
from lit_medgen.methods import Method

PAGE = (ROOT / "docs/own_classes.md").read_text()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the page's mine.py, the class of which is imported by trusted commands alone."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mine.py").write_text("\n".join(block for block in blocks if "class " in block))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_method_and_a_data_module_go_all_the_way(
    mine: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    config["trainer"] |= {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 0}
    grid = {"size": [8, 8, 8], "field_of_view_mm": [192, 192, 192]}
    config["data"]["init_args"] = {"root": str(phantoms / "ADNI"), "preprocessing": grid, "num_jobs": 1}
    config["data"]["init_args"] |= {"fractions": [0.5, 0.1, 0.4], "seed": 3}
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config=mine.yaml"]) == 2
    assert "mine.Clinic" in (line := one_line(capsys))
    assert "--trust_config" in line
    assert "mine" not in sys.modules
    fit = ["fit", "--config=mine.yaml", "--trust_config", "--ckpt_path=last"]
    assert main(fit) == 0
    assert main([*fit, "--trainer.max_steps=3"]) == 0
    last = Path("runs/mine/checkpoints/last.ckpt")
    assert last.resolve().name == "step_0000003.ckpt"
    sys.modules.pop("mine")
    sys.path.remove(str(mine))  # as the script `lit_medgen` starts
    for verb in ("sample", "evaluate", "fit"):
        assert main([verb, f"--ckpt_path={last}"]) == 2
        line = one_line(capsys)
        assert str(last) in line
        assert "--trust_config" in line
    with pytest.raises(InputError, match=r"trust=\['mine'\]"):
        lit_medgen.load(last)
    with pytest.raises(InputError, match="mine"):
        lit_medgen.load(last, trust=["mina"])
    assert "mine" not in sys.modules
    on_checkpoint = [f"--ckpt_path={last}", "--trainer.accelerator=cpu", "--trust_config", "--num=2"]
    assert main(["sample", *on_checkpoint]) == 0
    assert len(list(Path("samples").glob("*.nii.gz"))) == 2
    assert main(["evaluate", *on_checkpoint, "--features=none"]) == 0
    assert Path("report/report.md").is_file()
    model = lit_medgen.load(last, trust=["mine"])
    assert model.sample(Condition(), [0]).shape == (1, 1, 8, 8, 8)
    with pytest.raises(InputError, match="--trust_config"):
        lit_medgen.load(last)  # nothing remembers that it was trusted
    refined = ["--name=refined", "--model=mine.Refined", f"--model.init_args.first={last}"]
    assert main([*fit[:3], *refined]) == 0
    refined_model: Any = lit_medgen.load("runs/refined/checkpoints/last.ckpt", trust=["mine"])
    assert_equal(refined_model.first.state_dict(), model.state_dict())
    assert refined_model.brightest > -1
    assert refined_model.sample(Condition(), [0]).shape == (1, 1, 8, 8, 8)


def test_a_plain_module_is_a_network(mine: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TinyRun(mine / "out", phantoms)
    assert run.fit("--model.init_args.network=mine.Slices", "--trust_config") == 0
    assert main(["sample", "--ckpt_path", str(run.last), "--trainer.accelerator=cpu", "--num=1"]) == 2
    assert "mine.Slices" in one_line(capsys)
    assert run.on_checkpoint("sample", "--num=1", f"--out={mine / 's'}", "--trust_config") == 0
    model = lit_medgen.load(run.last, trust="mine")
    assert type(model.denoiser.network).__name__ == "Slices"


@pytest.mark.slow  # a training
def test_a_data_set_takes_the_place_of_that_of_a_config(mine: Path, phantoms: Path) -> None:
    run = TinyRun(mine / "out", phantoms, ("configs/cdpm.yaml", "configs/demo/cdpm.yaml"))
    run.options = [option for option in run.options if "root" not in option]
    words = "--data=mine.Clinic", f"--data.init_args.root={phantoms / 'ADNI'}", "--model.init_args.num_factors=0"
    assert run.fit(*words, "--trust_config") == 0
    assert lit_medgen.load(run.last, trust="mine").config["data"]["class_path"] == "mine.Clinic"


def test_a_network_of_another_signature_is_named(
    mine: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("mine.py").open("a") as file:
        file.write("\nclass Alone(nn.Conv2d):\n    def forward(self, x):\n        return x\n")
    run = TinyRun(mine / "out", phantoms)
    assert run.fit("--model.init_args.network=mine.Alone", "--trust_config") == 2
    line = one_line(capsys)
    assert "mine.Alone cannot be called as lit_medgen.networks.SliceNetwork says" in line


def test_a_file_that_cannot_be_imported_is_one_line(
    mine: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(mine / "out", phantoms)
    assert run.fit("--model.init_args.network=mine.Slices", "--trust_config") == 0
    sys.modules.pop("mine")
    Path("mine.py").write_text("1 / 0\n")
    assert run.on_checkpoint("sample", "--trust_config") == 2
    assert "mine.Slices" in one_line(capsys)
    with pytest.raises(InputError, match=r"mine\.Slices"):
        lit_medgen.load(run.last, trust="mine")


class One(Method):
    """Whatever `found` is, is its loss."""

    found: Any = torch.ones(())

    def loss(self, batch: Any) -> Any:
        return self.found


def test_a_loss_may_be_a_tensor() -> None:
    one: Any = One()
    assert one.losses(None) == {"loss": One.found}
    one.found = {"mse": torch.ones(())}
    with pytest.raises(InputError, match=r"One\.loss returned keys mse; return a tensor, or a dict with 'loss'"):
        one.losses(None)
