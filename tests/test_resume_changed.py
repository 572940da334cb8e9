"""A run that is resumed with other hyperparameters runs with those, or is refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from test_resume import assert_equal
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_medgen.batch import Batch
from lit_medgen.callbacks import EMA, Checkpoints
from lit_medgen.checkpoints import read_checkpoint
from lit_medgen.errors import InputError
from lit_medgen.trainer import Trainer
from lit_medgen.training.adversarial import Adversarial, Player
from lit_medgen.training.learning_rate import Constant, WarmupCosine
from lit_medgen.training.method import Method
from lit_medgen.words import known_config

ADAM = partial(torch.optim.AdamW, lr=1e-4)
RMSPROP = partial(torch.optim.RMSprop, lr=1e-4)


class Plain(Method):
    """One linear layer."""

    def __init__(self, optimizer: Any = ADAM, learning_rate_schedule: Constant | None = None) -> None:
        super().__init__(optimizer, learning_rate_schedule)
        torch.manual_seed(0)
        self.network = nn.Linear(4, 1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (self.network(batch.image.flatten(1)) - 1).square().mean()}


class Two(Adversarial):
    """A linear layer, and another one as its discriminator."""

    def __init__(self, optimizer: Any = ADAM, learning_rate_schedule: Constant | None = None) -> None:
        torch.manual_seed(0)
        super().__init__(optimizer, learning_rate_schedule)
        self.discriminator, self.network = nn.Linear(1, 1), nn.Linear(4, 1)

    def players(self) -> Sequence[Player]:
        return (
            Player("generator", self.loss, None, self.make_optimizer, self.learning_rate_schedule),
            Player(
                "discriminator",
                self.discriminator_loss,
                [self.discriminator],
                self.make_optimizer,
                self.learning_rate_schedule,
                averaged=False,
            ),
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.discriminator(self.network(batch.image.flatten(1))).mean()}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"discriminator_loss": (self.discriminator(batch.image.flatten(1)[:, :1]) - 1).square().mean()}


class Decaying(Plain):
    """With a schedule of PyTorch's own."""

    def __init__(self, optimizer: Any = ADAM, steps: int | list[int] = 10) -> None:
        super().__init__(optimizer)
        self.steps = steps

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        kind = torch.optim.lr_scheduler.StepLR if isinstance(self.steps, int) else torch.optim.lr_scheduler.MultiStepLR
        schedule = kind(optimizer, self.steps)  # type: ignore[arg-type]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Rates(Callback):
    """Step -> the hyperparameters of every optimizer that made it."""

    def __init__(self) -> None:
        self.groups: dict[int, list[dict[str, Any]]] = {}

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        groups = [optimizer.param_groups[0] for optimizer in trainer.optimizers]
        self.groups[trainer.global_step] = [{key: group[key] for key in group if key != "params"} for group in groups]


def train(folder: Path, model: Method, steps: int, *callbacks: Callback, **options: Any) -> Trainer:
    """Trains, or goes on, until so many steps are done; a checkpoint after each."""
    batch = Batch(torch.linspace(-1, 1, 8).view(2, 1, 2, 2), ["a", "b"], torch.eye(4)[None])
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_steps=steps,
        logger=False,
        callbacks=[Checkpoints(1, keep=-1), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, DataLoader([batch] * 100, batch_size=None), ckpt_path="last")
    return trainer


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / f"step_{step:07d}.ckpt")


@pytest.mark.parametrize("kind", [Plain, Two])
@pytest.mark.parametrize(
    "now",
    [WarmupCosine(0, 8), WarmupCosine(1, 3), Constant(5), WarmupCosine(0, 4)],
    ids=["longer", "shorter", "another", "the same"],
)
def test_changed_values_are_the_ones_that_run(
    now: Constant, kind: type[Plain], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, kind(ADAM, WarmupCosine(0, 4)), 2)
    assert "resumed" not in capsys.readouterr().err
    rates = Rates()
    train(tmp_path, kind(partial(torch.optim.AdamW, lr=0.05, betas=(0.5, 0.9), weight_decay=0.2), now), 6, rates)
    assert set(rates.groups) == {2, 3, 4, 5}
    for step, groups in rates.groups.items():
        for group in groups:
            assert group["lr"] == 0.05 * now(step)
            assert (group["betas"], group["weight_decay"]) == ((0.5, 0.9), 0.2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resumed")]
    assert "optimizer.lr 0.0001 -> 0.05" in line
    assert ("discriminator_optimizer.lr 0.0001 -> 0.05" in line) == (kind is Two)
    assert ("learning_rate_schedule WarmupCosine(warmup_steps=0, total_steps=4) -> " in line) == (
        vars(now) != vars(WarmupCosine(0, 4))
    )
    for state in checkpoint(tmp_path, 6)["optimizer_states"]:  # what is kept is what ran
        assert state["param_groups"][0]["initial_lr"] == 0.05


def test_a_changed_rate_learns_as_if_it_had_been_set_by_hand(tmp_path: Path) -> None:
    class ByHand(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step >= 2:
                trainer.optimizers[0].param_groups[0]["lr"] = 0.05

    train(tmp_path / "a", Plain(), 5, ByHand())
    train(tmp_path / "b", Plain(), 2)
    train(tmp_path / "b", Plain(partial(torch.optim.AdamW, lr=0.05)), 5)
    assert_equal(*(checkpoint(tmp_path / name, 5)["state_dict"] for name in "ab"))


@pytest.mark.parametrize(
    ("before", "now", "options", "words"),
    [
        (Plain(), Plain(partial(torch.optim.SGD, lr=1e-4)), {}, ["model.init_args.optimizer", "SGD", "AdamW"]),
        (Two(), Two(partial(torch.optim.SGD, lr=1e-4)), {}, ["optimizer", "SGD", "AdamW"]),
        (Decaying(), Decaying(steps=4), {}, ["learning_rate_schedule", "step_size=4", "step_size=10"]),
        (Decaying(steps=[4, 8]), Decaying(steps=[4, 9]), {}, ["learning_rate_schedule", "8=1", "9=1"]),
        (Decaying(), Decaying(partial(torch.optim.AdamW, lr=0.05)), {}, ["optimizer.lr", "0.05", "0.0001"]),
        (Plain(), Plain(), {"accumulate_grad_batches": 3}, ["trainer.accumulate_grad_batches", "3", "1"]),
        (Plain(), Plain(partial(ADAM, amsgrad=True)), {}, ["optimizer.amsgrad", "True", "False"]),
        (Plain(RMSPROP), Plain(partial(RMSPROP, momentum=0.9)), {}, ["optimizer.momentum", "0.9", "0"]),
    ],
    ids=["class", "two classes", "schedule", "milestones", "rate of a schedule", "accumulation", "amsgrad", "momentum"],
)
def test_what_cannot_change_is_refused(
    before: Method, now: Method, options: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    train(tmp_path, before, 2)
    with pytest.raises(InputError) as caught:
        train(tmp_path, now, 4, **options)
    assert all(word in str(caught.value) for word in [*words, "step_0000002.ckpt", "--name"]), caught.value
    assert not (tmp_path / "checkpoints" / "step_0000003.ckpt").exists()


@pytest.mark.parametrize("kind", [Plain, Two, Decaying])
def test_nothing_changed_is_the_same_run(
    kind: Callable[[], Method], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "a", kind(), 4, EMA(0.9))
    for steps in (2, 4):
        train(tmp_path / "b", kind(), steps, EMA(0.9))
    assert_equal(*(checkpoint(tmp_path / name, 4) for name in "ab"))
    assert "resumed" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
def test_what_can_be_turned_on_or_off_later_is(kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    option = {"amsgrad": True} if kind is torch.optim.AdamW else {"momentum": 0.9}
    optimizer = partial(kind, lr=1e-4)
    on = partial(optimizer, **option)
    for steps, each in [(1, optimizer if kind is torch.optim.SGD else on), (2, on), (3, optimizer)]:
        train(tmp_path, Plain(each), steps)
    assert f"optimizer.{next(iter(option))}" in capsys.readouterr().err


def test_clipping_that_changes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, Plain(), 1)
    train(tmp_path, Plain(), 2, gradient_clip_val=0.1)
    assert "trainer.gradient_clip_val None -> 0.1" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (2.0, 0.9)}, {"foreach": True, "fused": True}])
@pytest.mark.parametrize("kind", [Plain, Two])
def test_values_that_an_optimizer_refuses_are_one_line(
    kind: type[Plain], options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^model\.init_args\.optimizer: .*init_args"):
        train(tmp_path, kind(partial(ADAM, **options)), 1)


# Averaged weights.


def test_two_averages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 EMA callbacks \(decay 0\.9, 0\.5\); keep one"):
        train(tmp_path, Plain(), 1, EMA(0.9), EMA(0.5))


def test_averaged_weights_are_not_trained_on(tmp_path: Path) -> None:
    train(tmp_path, Plain(), 2, EMA(0.9))
    with pytest.raises(InputError, match=r"holds averaged weights, .* no EMA.*--trainer\.callbacks\+=") as caught:
        train(tmp_path, Plain(), 4)
    assert "step_0000002.ckpt" in str(caught.value)


def test_decay_changes_and_decay_0_ends_the_averaging(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, Plain(), 2, EMA(0.9, warmup=False))
    train(tmp_path, Plain(), 3, EMA(0.5, warmup=False))
    assert "EMA.decay 0.9 -> 0.5" in capsys.readouterr().err
    two, three = (checkpoint(tmp_path, step) for step in (2, 3))
    raw = three["callbacks"]["EMA"]["raw"]
    for name, average in three["state_dict"].items():
        torch.testing.assert_close(average, (two["state_dict"][name] + raw[name]) / 2)
    train(tmp_path, Plain(), 4, EMA(0.0))
    four = checkpoint(tmp_path, 4)
    assert_equal(dict(four["state_dict"]), four["callbacks"]["EMA"]["raw"])


def test_an_average_that_begins_later_begins_at_the_weights(tmp_path: Path) -> None:
    train(tmp_path, Plain(), 2)
    train(tmp_path, Plain(), 3, EMA(0.9, warmup=False))
    two, three = (checkpoint(tmp_path, step) for step in (2, 3))
    raw = three["callbacks"]["EMA"]["raw"]
    for name, average in three["state_dict"].items():
        torch.testing.assert_close(average, 0.9 * two["state_dict"][name] + 0.1 * raw[name])


def test_arguments_of_callbacks_are_those_of_the_command(tmp_path: Path) -> None:
    train(tmp_path, Plain(), 2, EarlyStopping("train/loss", patience=2))
    now = EarlyStopping("train/loss", patience=7)
    train(tmp_path, Plain(), 3, now)
    assert now.patience == 7


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    train(tmp_path, Plain(), 1)
    other = Plain()
    other.network = nn.Linear(4, 2)
    with pytest.raises(InputError, match=r"step_0000001\.ckpt: its weights do not fit the network"):
        train(tmp_path, other, 2)


# What is saved.


def test_a_checkpoint_made_in_python_is_resumed_with_a_config(tmp_path: Path) -> None:
    train(tmp_path, Plain(), 1)
    words = ["fit", f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"]
    with pytest.raises(InputError, match=r"holds no config .* add --config"):
        known_config(words, False)
    assert known_config([*words, "--config=configs/cdpm.yaml"], False) is None


def test_a_run_that_saves_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    Trainer(accelerator="cpu", default_root_dir=tmp_path, max_steps=1, **options).fit(Plain(), DataLoader([]))
    assert "callbacks+:" in capsys.readouterr().err
    train(tmp_path, Plain(), 1)
    assert "callbacks+:" not in capsys.readouterr().err
