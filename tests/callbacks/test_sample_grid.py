"""Sample grids: they take few steps, and leave the method as it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import Tensor

from lit_medgen.batch import Batch, Condition
from lit_medgen.callbacks import SampleGrid
from lit_medgen.diffusion import Ancestral, DPMSolverPP2M, Heun, Sampler
from lit_medgen.training.generator import Generator


class Steps(Generator):
    """A user's method, with whichever of the two attributes."""

    def __init__(self, sampler: Sampler | None = None, num_steps: int | None = None) -> None:
        super().__init__()
        if sampler is not None:
            self.sampler = sampler
        if num_steps is not None:
            self.num_steps = num_steps

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("sampler", [Ancestral(1000), Heun(21)])
def test_a_sampler_of_many_steps_is_replaced_for_a_while(sampler: Sampler) -> None:
    method = Steps(sampler)
    with method.in_few_steps(20):
        assert isinstance(method.sampler, DPMSolverPP2M)
        assert method.sampler.num_steps == 20
    assert method.sampler is sampler


def test_few_steps_are_left_as_they_are() -> None:
    method = Steps(sampler := Ancestral(20), 1)
    for most in (20, None):
        with method.in_few_steps(most):
            assert (method.sampler, method.num_steps) == (sampler, 1)
    with Steps().in_few_steps(20):  # a first stage has neither
        pass


def test_a_number_of_steps_is_lowered_for_a_while() -> None:
    method = Steps(num_steps=256)
    with method.in_few_steps(20):
        assert method.num_steps == 20
    assert method.num_steps == 256


def test_a_grid_takes_twenty_steps_unless_told_otherwise() -> None:
    assert SampleGrid().num_steps == 20
    with pytest.raises(ValueError, match="num_steps is 0"):
        SampleGrid(num_steps=0)
