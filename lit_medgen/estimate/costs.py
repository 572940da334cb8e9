"""What a training step and a sample of an experiment cost, counted on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from torch._subclasses.fake_tensor import FakeTensorMode

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.estimate.batches import made_up_condition
from lit_medgen.estimate.counting import PRECISIONS, Counting, Scratch, as_on_gpu, onednn_scratch
from lit_medgen.estimate.experiments import Config, Experiment, PartConfigs
from lit_medgen.estimate.rehearsal import Rehearsal, Training
from lit_medgen.training.generator import Generator

FEW_STEPS = (1, 2)
"""Steps of samples that are counted; each further step costs what their difference says."""


@dataclass(frozen=True)
class Costs:
    """Of a training step, or of a sample.

    Attributes:
        flops: floating-point operations.
        peak: bytes held at most, on the device.
    """

    flops: float
    peak: int


@dataclass(frozen=True)
class Estimate:
    """What is known of an experiment from its config.

    Attributes:
        trained: parameters that are trained.
        frozen: other parameters.
        step: costs of a training step, all its batches.
        sample: of one sample; None of a method that makes none.
        accumulates: whether gradients of several batches can be one step; not those of players that take turns.
    """

    trained: int
    frozen: int
    step: Costs
    sample: Costs | None
    accumulates: bool = True


class _Fakes(FakeTensorMode):
    """A mode that a copied fake tensor shares: a copy of the mode itself crashes the process sooner or later."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors made within are fake; what was made before may be used as if it were."""
    with _Fakes(allow_non_fake_inputs=True):
        yield


def estimated(
    config: Config,
    parts: PartConfigs,
    training: Training,
    on_gpu: bool = True,
    samples: bool = True,
) -> Estimate:
    """The estimate of a config.

    Args:
        config: with the sections model and data.
        parts: where configs of frozen parts are.
        training: how the trainer takes a step.
        on_gpu: whether a GPU computes, which has half precision in other places than a CPU and no scratch of oneDNN.
        samples: whether a sample is counted too.
    """
    with fake_tensors():
        experiment = Experiment.of(config, parts)
        model = experiment.model
        num = {True: 0, False: 0}
        for parameter in model.parameters():
            num[parameter.requires_grad] += parameter.numel()
        rehearsal = Rehearsal.of(model, training)
        with as_on_gpu(on_gpu and training.precision in PRECISIONS):
            step, sample = step_costs(rehearsal, experiment.batch, None if on_gpu else onednn_scratch), None
            if samples and isinstance(model, Generator):
                sample = sample_costs(rehearsal, model, experiment.spec)
    return Estimate(num[True], num[False], step, sample, not rehearsal.take_turns)


def step_costs(rehearsal: Rehearsal, batch: Batch, scratch: Scratch | None = None) -> Costs:
    """Of a step that is not the first, so that the optimizers have their averages."""
    rehearsal.warm_up()
    flops = 0.0
    with Counting(scratch) as counting:
        counting.hold([*rehearsal.tensors, *batch.tensors])
        before = 0
        for number in rehearsal.updates(batch):
            flops += rehearsal.share(number) * (counting.flops - before)
            before = counting.flops
    return Costs(flops, counting.peak)


def sample_costs(rehearsal: Rehearsal, model: Generator, spec: DataSpec) -> Costs:
    """Of one sample: weights, and what its making holds besides."""
    condition, num_steps = made_up_condition(model, spec), model.num_sampling_steps or 0
    if num_steps <= max(FEW_STEPS):
        return _of_sample(rehearsal, model, condition, None)
    few, more = (_of_sample(rehearsal, model, condition, num) for num in FEW_STEPS)
    each = (more.flops - few.flops) / (FEW_STEPS[1] - FEW_STEPS[0])
    return Costs(few.flops + each * (num_steps - FEW_STEPS[0]), max(few.peak, more.peak))


def _of_sample(rehearsal: Rehearsal, model: Generator, condition: Condition, num_steps: int | None) -> Costs:
    with Counting() as counting:
        counting.hold([*model.parameters(), *model.buffers()])
        rehearsal.sample(model, condition, num_steps)
    return Costs(counting.flops, counting.peak)
