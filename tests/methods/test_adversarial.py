"""Players that take turns: one step a batch, exact resume, alone, in bf16 and on two processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_adversarial
from lightning.pytorch import Callback
from test_resume import assert_equal, losses
from tiny_run import ROOT
from torch import Tensor, nn
from toy_adversarial import Three, Toy, run

from lit_medgen.batch import Batch
from lit_medgen.callbacks import Throughput
from lit_medgen.errors import InputError, Interrupted
from lit_medgen.trainer import Trainer
from lit_medgen.training.adversarial import Player


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


def test_what_is_not_averaged_is_no_parameter_of_the_model() -> None:
    toy = Toy()
    counted = toy.num_parameters
    assert counted == sum(each.numel() for each in toy.generator.parameters())
    assert counted + sum(each.numel() for each in toy.discriminator.parameters()) == sum(
        each.numel() for each in toy.parameters()
    )


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


# Three players of different periods, one of which begins late.

PERIODS = [(1, 2, 3), (2, 3, 1)]
"""Batches from one update to the next; where the first player's are 2, a step is two batches."""


def updates(period: int, batches: int, start: int = 0) -> int:
    return sum((batch + 1) % period == 0 for batch in range(start, batches))


@pytest.mark.parametrize("periods", PERIODS)
def test_each_player_moves_when_its_turn_is(periods: tuple[int, ...], tmp_path: Path, phantoms: Path) -> None:
    steps = 7
    model = run(tmp_path, phantoms, steps, make=lambda: Three(periods), callbacks=[Throughput(1)])
    batches = steps * periods[0]
    assert model.trainer.global_step == steps
    assert model.trainer.fit_loop.epoch_loop.total_batch_idx + 1 == batches
    checkpoint: Any = newest(tmp_path)
    expected = [updates(period, batches, start) for period, start in zip(periods, (0, 0, 4), strict=True)]
    assert [state["state"][0]["step"].item() for state in checkpoint["optimizer_states"]] == expected
    assert [schedule["last_epoch"] for schedule in checkpoint["lr_schedulers"]] == expected
    assert set(checkpoint["callbacks"]["EMA"]["raw"]) == {"generator.weight", "generator.bias"}
    with (tmp_path / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("gradient_norm", "discriminator_gradient_norm", "encoder_gradient_norm")
    for name, period, start in zip(names, periods, (0, 0, 4), strict=True):
        logged = [int(row["step"]) for row in rows if row[f"train/{name}"]]  # nothing of batches in which it rests
        assert logged == [batch for batch in range(start, batches) if (batch + 1) % period == 0]
    samples, steps = (float(rows[-1][f"train/{name}_per_second"]) for name in ("samples", "steps"))
    assert samples / steps == pytest.approx(periods[0] * model.trainer.datamodule.batch_size)  # type: ignore[attr-defined]


@pytest.mark.parametrize("periods", PERIODS)
def test_a_run_resumed_after_every_step_is_the_same_run(
    periods: tuple[int, ...], tmp_path: Path, phantoms: Path
) -> None:
    run(tmp_path / "a", phantoms, 7, make=lambda: Three(periods))
    for steps in range(1, 8):
        run(tmp_path / "b", phantoms, steps, make=lambda: Three(periods))
    assert_same(tmp_path / "a", tmp_path / "b")


class Stop(Callback):
    """What a signal in a batch would do, the first being 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            trainer.signals.received = signal.SIGTERM


def test_a_run_stopped_between_two_steps_is_the_same_run(tmp_path: Path, phantoms: Path) -> None:
    make = partial(Three, (3, 1, 2))
    run(tmp_path / "a", phantoms, 4, make=make)
    for batch, step in [(1, 0), (4, 1), (10, 3)]:
        with pytest.raises(Interrupted, match=rf"after step {step}; saved as \S*step_{step:07d}\.ckpt") as caught:
            run(tmp_path / "b", phantoms, 4, make=make, callbacks=[Stop(batch)])
        assert Path(str(caught.value).split("saved as ")[1].split(";")[0]).is_file()
    run(tmp_path / "b", phantoms, 4, make=make)
    assert_same(tmp_path / "a", tmp_path / "b")


class Watched(Three):
    """Notes in each loss which modules learn, and the generator as it stands."""

    def __init__(self) -> None:
        super().__init__((1, 1, 1))
        self.seen: list[tuple[str, set[str], Tensor]] = []

    def players(self) -> list[Player]:
        return [replace(player, loss=partial(self.watched, player), start=0) for player in super().players()]

    def watched(self, player: Player, batch: Batch) -> dict[str, Tensor] | Tensor:
        learning = {name for name, module in self.named_children() if next(module.parameters()).requires_grad}
        self.seen.append((player.name, learning, self.generator.weight.detach().clone()))
        return player.loss(batch)


def test_each_player_learns_alone_and_sees_the_updates_of_those_before(tmp_path: Path, phantoms: Path) -> None:
    def make() -> Watched:
        model = Watched()
        model.generator.bias.requires_grad_(False)
        return model

    model = run(tmp_path, phantoms, 2, make=make)
    assert isinstance(model, Watched)
    assert [name for name, *_ in model.seen] == ["generator", "discriminator", "encoder"] * 2
    assert all(learning == {name} for name, learning, _ in model.seen)
    before, after, end, next_batch = (weights for *_, weights in model.seen[:4])
    assert not torch.equal(before, after)
    assert torch.equal(after, end)
    assert torch.equal(end, next_batch)
    assert {name for name, each in model.named_parameters() if not each.requires_grad} == {"generator.bias"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g, d, e: [replace(g, every_n_batches=0), d, e], ["player generator", "every_n_batches is 0"]),
        (lambda g, d, e: [g, replace(d, every_n_batches=1.5), e], ["player discriminator", "every_n_batches is 1.5"]),
        (lambda g, d, e: [g, d, replace(e, start=-1)], ["player encoder", "start is -1"]),
        (lambda g, d, e: [g, replace(d, name="a critic"), e], ["Player.name", "a critic"]),
        (lambda g, d, e: [g, d, replace(e, name=d.name)], ["Three.players", "discriminator, discriminator"]),
        (lambda g, d, e: [g, replace(d, modules=None), e], ["Three.players", "2 of them have no modules"]),
        (lambda g, d, e: [], ["Three.players", "none"]),
        (lambda g, d, e: [g, d, replace(e, modules=[*e.modules, *d.modules])], ["both train discriminator.weight"]),
        (lambda g, d, e: [replace(g, modules=d.modules), e], ["none trains generator.weight"]),
        (lambda g, d, e: [g, d, e, Player("other", e.loss, [nn.Linear(1, 1)])], ["other has no parameter"]),
        (
            lambda g, d, e: [g, replace(d, loss=lambda batch: {"loss": 0.0}), e],
            ["discriminator", "keys loss", "_loss'"],
        ),
        (lambda g, d, e: [g, replace(d, loss=lambda batch: 0.0), e], ["loss of discriminator", "float"]),
        (lambda g, d, e: [g, twice(d), e], ["loss of discriminator returned loss", "rename"]),
    ],
)
def test_players_that_cannot_take_turns_are_refused(
    change: Callable[..., list[Player]], words: list[str], tmp_path: Path, phantoms: Path
) -> None:
    class Three(toy_adversarial.Three):
        def players(self) -> list[Player]:
            return change(*super().players())

    with pytest.raises(InputError) as caught:
        run(tmp_path, phantoms, 2, make=lambda: Three((1, 1, 1)))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not list(tmp_path.glob("checkpoints/*.ckpt"))


def twice(player: Player) -> Player:
    """The player with another player's name among its losses."""
    return replace(player, loss=lambda batch: player.loss(batch) | {"loss": torch.zeros(())})  # type: ignore[operator]


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
