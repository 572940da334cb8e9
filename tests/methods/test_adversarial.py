"""Two optimizers: one step a batch, exact resume, alone, in bf16 and on two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resume import assert_equal, losses
from tiny_run import ROOT
from toy_adversarial import Toy, run

from lit_medgen.errors import InputError
from lit_medgen.trainer import Trainer


def newest(folder: Path) -> dict[str, object]:
    checkpoint: dict[str, object] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def assert_same(a: Path, b: Path) -> None:
    one, other = newest(a), newest(b)
    for part in ("state_dict", "callbacks", "optimizer_states", "lr_schedulers", "loops"):
        assert_equal(one[part], other[part])
    assert losses(a) == losses(b)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_interrupted_run_ends_bit_equal(precision: str, tmp_path: Path, phantoms: Path) -> None:
    run(tmp_path / "a", phantoms, 6, precision=precision)
    for steps in (2, 5, 6):
        run(tmp_path / "b", phantoms, steps, precision=precision)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_step_counts_once_and_both_learn(tmp_path: Path, phantoms: Path) -> None:
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in Toy().state_dict().items()}
    model = run(tmp_path, phantoms, 5)
    assert model.trainer.global_step == 5
    after = model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    checkpoint = newest(tmp_path)
    averaged = checkpoint["callbacks"]["EMA"]["raw"]  # type: ignore[index]
    assert set(averaged) == {"generator.weight", "generator.bias"}  # the discriminator is not averaged
    steps = [state["state"][0]["step"].item() for state in checkpoint["optimizer_states"]]  # type: ignore[attr-defined]
    assert steps == [5, 5]


def test_the_generator_is_trained_against_a_discriminator_held_still(tmp_path: Path, phantoms: Path) -> None:
    model = run(tmp_path, phantoms, 2)
    generator, discriminator = model.configure_optimizers()[0]
    ours = {id(parameter) for group in generator.param_groups for parameter in group["params"]}
    theirs = {id(parameter) for group in discriminator.param_groups for parameter in group["params"]}
    assert ours == {id(parameter) for parameter in model.generator.parameters()}
    assert theirs == {id(parameter) for parameter in model.discriminator.parameters()}


def test_the_discriminator_has_a_schedule_of_its_own(tmp_path: Path, phantoms: Path) -> None:
    # The generator warms up over 2 steps; the discriminator, whose gradient is heard from its first step on, does not.
    model = run(tmp_path, phantoms, 1)
    ours, theirs = model.configure_optimizers()[1]
    assert ours.get_last_lr()[0] == pytest.approx(1e-4 / 3)
    assert theirs.get_last_lr()[0] == pytest.approx(1e-4)
    discriminator = newest(tmp_path)["optimizer_states"][1]  # type: ignore[index]
    assert discriminator["param_groups"][0]["lr"] == pytest.approx(1e-4)


def test_fp16_is_refused(tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a CPU, Lightning takes bf16 instead; a GPU would take it at its word.
    monkeypatch.setattr(Trainer, "precision", property(lambda trainer: "16-mixed"))
    with pytest.raises(InputError, match="use bf16-mixed"):
        run(tmp_path, phantoms, 1)


@pytest.mark.xdist_group("two")
@pytest.mark.slow  # VQGAN on two processes, in tests/test_two_processes.py, is not
@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_two_processes(precision: str, tmp_path: Path, phantoms: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PL_GLOBAL_SEED", None)

    def two(name: str, steps: int) -> None:
        words = [str(tmp_path / name), str(phantoms), str(steps), "2", precision]
        script = ROOT / "tests" / "toy_adversarial.py"
        done = subprocess.run(
            [sys.executable, str(script), *words], env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert "MEMBER: 2/2" in done.stderr

    two("a", 4)
    two("b", 2)
    two("b", 4)
    assert_same(tmp_path / "a", tmp_path / "b")
