"""Resuming: state comes from the checkpoint, hyperparameters from the config of the new command.

State is the weights, the optimizers' moments and the positions in learning-rate schedule and data. PyTorch keeps
hyperparameters in the states of optimizers and schedules too, and would load the old values over the configured ones.
So the configured values are written into these states before they are loaded. What cannot change within a run is
refused in one line; what has changed is said in one line.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_medgen.callbacks.ema import EMA
from lit_medgen.checkpoints import FACTS
from lit_medgen.errors import InputError, describe
from lit_medgen.output import say
from lit_medgen.training.method import Method

HYPERPARAMETERS = "hyperparameters"
"""Key, below `FACTS`, of the values that the run was configured with."""

ACCUMULATE = "trainer.accumulate_grad_batches"
NEEDS = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg", "momentum": "momentum_buffer"}
"""Hyperparameters that cannot be turned on later -> the state that they read, kept only while they are on."""

DEPTH = 4
"""Of objects within objects that are compared."""

POSITION = (
    *("optimizer", "last_epoch", "base_lrs", "mode_worse"),
    *("_last_lr", "_step_count", "_is_initial", "_get_lr_called_within_step"),
)
"""Attributes of PyTorch's schedules that say where they stand, not how they were made."""


class Resume(_CheckpointConnector):
    """Lightning's saving and restoring of a run, with the hyperparameters of the command that resumes it."""

    def dump_checkpoint(self, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint's content, with the hyperparameters that the run was configured with."""
        checkpoint: dict[str, Any] = super().dump_checkpoint(weights_only)
        if FACTS in checkpoint:
            checkpoint[FACTS][HYPERPARAMETERS] = self._configured
        return checkpoint

    def restore_model(self) -> None:
        """Loads the weights; InputError if they are of another architecture."""
        try:
            super().restore_model()
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise InputError(
                f"{self._ckpt_path}: its weights do not fit the network that model.init_args describes "
                f"({describe(error)[:200]} ...); give the network it was trained with."
            ) from error

    def restore_callbacks(self) -> None:
        """Loads the states of callbacks; their arguments stay as configured.

        InputError if the checkpoint holds averaged weights and nothing here averages: training would go on from them.
        """
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        saved = self._loaded_checkpoint.get("callbacks", {})
        averages = any(isinstance(callback, EMA) for callback in callbacks)
        if self.trainer.state.fn == "fit" and EMA().state_key in saved and not averages:
            raise InputError(
                f"{self._ckpt_path}: holds averaged weights, but trainer.callbacks has no EMA, so training would go on "
                "from the average; add it (--trainer.callbacks+=lit_medgen.callbacks.EMA), with decay 0 if nothing is "
                "to be averaged from here on."
            )
        arguments = [(callback, _arguments(callback)) for callback in callbacks]
        super().restore_callbacks()
        for callback, configured in arguments:
            for name, value in configured.items():
                setattr(callback, name, value)  # EarlyStopping takes its patience from the checkpoint

    def restore_training_state(self) -> None:
        """Called once optimizers and schedules are made as configured, also when there is nothing to restore."""
        if self.trainer.state.fn == "fit":
            self._configured = hyperparameters(self.trainer)
        super().restore_training_state()

    def restore_optimizers_and_schedulers(self) -> None:
        """Loads optimizers and schedules with the configured hyperparameters, and prints which have changed.

        InputError if a change cannot be applied.
        """
        before = self._loaded_checkpoint.get(FACTS, {}).get(HYPERPARAMETERS, {})
        changed = {
            key: (before.get(key), self._configured.get(key))
            for key in before | self._configured
            if before.get(key) != self._configured.get(key) and (key in before or not key.startswith("trainer."))
        }
        _refuse_if_fixed(self.trainer, changed if before else {}, self._loaded_checkpoint, self._ckpt_path)
        _configure_states(self.trainer, self._loaded_checkpoint, changed)
        try:
            super().restore_optimizers_and_schedulers()
        except ValueError as error:  # another number of parameters
            raise InputError(
                f"{self._ckpt_path}: its optimizer state does not fit ({describe(error)}); train the same parts of the "
                "network, or start a run of another --name."
            ) from error
        if before and changed:
            changes = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
            say(f"resumed with changed values: {changes}", warning=True)


def leave_saving_to_callbacks(options: dict[str, Any]) -> None:
    """Sets the options of a trainer so that it saves only as its callbacks say; Lightning would add one of its own."""
    callbacks = options.get("callbacks")
    callbacks = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    if options.get("enable_checkpointing") is None and not any(isinstance(each, Checkpoint) for each in callbacks):
        options["enable_checkpointing"] = False


def refuse_two_averages(trainer: Trainer) -> None:
    """InputError for two EMA callbacks: each would take the other's average for the raw weights."""
    decays = [callback.decay for callback in trainer.callbacks if isinstance(callback, EMA)]  # type: ignore[attr-defined]
    if len(decays) > 1:
        raise InputError(
            f"trainer.callbacks has {len(decays)} EMA callbacks (decay {', '.join(map(str, decays))}); keep one: "
            "callbacks+: adds to a list, callbacks: replaces it."
        )


def tell_if_nothing_is_saved(trainer: Trainer) -> None:
    """Prints one line if no callback saves checkpoints."""
    if not trainer.checkpoint_callbacks:
        say(
            "no checkpoints: trainer.callbacks has no Checkpoints, so nothing of this run is saved; add it with "
            "callbacks+: in a config, or --trainer.callbacks+=lit_medgen.callbacks.Checkpoints",
            warning=True,
        )


def hyperparameters(trainer: Trainer) -> dict[str, Any]:
    """Key -> value, plain data, of what decides each update and the order of samples; before anything is restored."""
    named: dict[str, Any] = {
        "seed_everything": os.environ.get("PL_GLOBAL_SEED"),
        ACCUMULATE: trainer.accumulate_grad_batches,
        "trainer.gradient_clip_val": trainer.gradient_clip_val,
        "trainer.gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "trainer.precision": trainer.precision,
    }
    for name, optimizer in _optimizers(trainer):
        named[name] = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        for prefix, group in _groups(name, optimizer.param_groups):
            values = group | ({"lr": group["initial_lr"]} if "initial_lr" in group else {})
            named |= {f"{prefix}.{key}": plain(values[key]) for key in _keys(group)}
    for name, schedule in _schedules(trainer):
        parts = schedule.lr_lambdas if isinstance(schedule, LambdaLR) else [schedule]
        named[name] = ", ".join(_text(part, DEPTH) for part in parts)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA):
            named |= {"EMA.decay": callback.decay, "EMA.warmup": callback.warmup}
    order = getattr(getattr(trainer, "datamodule", None), "order", dict)
    return named | {f"data.{key}": plain(value) for key, value in order().items()}


def plain(value: Any) -> Any:
    """A value as plain data: an object as text, its class with what it was made with."""
    value = value.tolist() if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 0 else value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [plain(part) for part in value] if isinstance(value, list | tuple) else _text(value, DEPTH)


def _text(value: Any, depth: int) -> str:
    """Class and attributes of an object, and of objects in it, down to a depth; of a large array the class alone."""
    if value is None or isinstance(value, bool | int | float | str):
        return str(value)
    if isinstance(value, list | tuple) and depth:
        return f"[{', '.join(_text(part, depth - 1) for part in value)}]"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    parts = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    texts = [f"{key}={_text(part, depth - 1)}" for key, part in parts.items() if key not in POSITION] if depth else []
    return f"{name}({', '.join(texts)})"


def _optimizers(trainer: Trainer) -> list[tuple[str, Optimizer]]:
    """Each optimizer with the name of the method's argument that makes it."""
    method = trainer.lightning_module
    keys = tuple(method.optimizer_factories()) if isinstance(method, Method) else ()
    return _named(keys, "optimizer", trainer.optimizers)


def _schedules(trainer: Trainer) -> list[tuple[str, Any]]:
    """Each learning-rate schedule with the name of the method's argument that makes it."""
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    method = trainer.lightning_module
    keys = tuple(method.learning_rate_schedules()) if isinstance(method, Method) else ()
    return _named(keys, "learning_rate_schedule", schedules)


def _named(keys: tuple[str, ...], other: str, objects: Sequence[Any]) -> list[tuple[str, Any]]:
    names = [*keys, *(f"{other}_{number + 1}" for number in range(len(keys), len(objects)))]
    return list(zip(names, objects, strict=False))


def _groups(name: str, groups: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each parameter group with the beginning of its keys; most optimizers have one."""
    for number, group in enumerate(groups):
        yield (name if number == 0 else f"{name}.group_{number + 1}"), group


def _keys(group: dict[str, Any]) -> list[str]:
    """The hyperparameters of a parameter group."""
    return [key for key in group if key not in ("params", "param_names", "initial_lr")]


def _arguments(callback: Any) -> dict[str, Any]:
    """The attributes of a callback that carry the name of an argument that made it."""
    names = inspect.signature(type(callback)).parameters
    return {name: value for name, value in vars(callback).items() if name in names}


def _refuse_if_fixed(
    trainer: Trainer, changed: Mapping[str, tuple[Any, Any]], checkpoint: dict[str, Any], path: Any
) -> None:
    """InputError for a change (key -> the value before, the value now) that a run in progress cannot take."""
    fixed = {name for name, _ in _optimizers(trainer)} | _without_state(trainer, checkpoint)
    for name, schedule in _schedules(trainer):
        if not isinstance(schedule, LambdaLR):  # its values cannot be told from its state
            fixed |= {name, *(f"{key}.lr" for key, each in _optimizers(trainer) if each is schedule.optimizer)}
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    if batches % trainer.accumulate_grad_batches:  # the first step would be of fewer batches than the others
        fixed.add(ACCUMULATE)
    for key in fixed & changed.keys():
        before, now = changed[key]
        where = key if key == ACCUMULATE else f"model.init_args.{key}"
        raise InputError(
            f"{where} is {now}, but the run of {path} has {before}, which cannot change at step "
            f"{trainer.global_step}; give {before}, or start a run of another --name without --ckpt_path."
        )


def _without_state(trainer: Trainer, checkpoint: dict[str, Any]) -> set[str]:
    """Keys of `NEEDS` that are on, of optimizers whose saved state has not what they read; SGD makes its own."""
    keys: set[str] = set()
    for (name, optimizer), state in zip(_optimizers(trainer), checkpoint["optimizer_states"], strict=False):
        lacking = {key for key, kept in NEEDS.items() if any(kept not in each for each in state["state"].values())}
        for prefix, group in _groups(name, optimizer.param_groups) if not isinstance(optimizer, SGD) else ():
            keys |= {f"{prefix}.{key}" for key in lacking if group.get(key)}
    return keys


def _configure_states(trainer: Trainer, checkpoint: dict[str, Any], changed: Iterable[str]) -> None:
    """Writes configured values into the states of optimizers and schedules that are about to be loaded."""
    states = checkpoint["optimizer_states"]
    for (name, optimizer), state in zip(_optimizers(trainer), states, strict=False):
        for (prefix, group), saved in zip(_groups(name, optimizer.param_groups), state["param_groups"], strict=False):
            saved |= {key: group[key] for key in _keys(group) if f"{prefix}.{key}" in changed}
    groups = {id(each): state["param_groups"] for (_, each), state in zip(_optimizers(trainer), states, strict=False)}
    for (_, schedule), state in zip(_schedules(trainer), checkpoint["lr_schedulers"], strict=False):
        if isinstance(schedule, LambdaLR):
            step = state["last_epoch"]
            rates = [rate * factor(step) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
            state |= {"base_lrs": schedule.base_lrs, "lr_lambdas": [None] * len(rates), "_last_lr": rates}
            for group, base, rate in zip(groups[id(schedule.optimizer)], schedule.base_lrs, rates, strict=False):
                group |= {"initial_lr": base, "lr": rate}
