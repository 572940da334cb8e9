"""What `make bench` compares can still be compared."""

from __future__ import annotations

import re

import pytest

from benchmarks import asked_number, guidance_cost, training_step


@pytest.mark.slow  # that the two networks are one: tests/networks/test_unet.py
def test_the_peer_network_takes_our_training_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_step, "NUM_TURNS", 1)
    training_step.main()
    ratios = [float(ratio) for ratio in re.findall(r"ours, \w+ / MONAI, \w+: ([\d.]+)", capsys.readouterr().out)]
    assert len(ratios) == 3
    assert all(0 < ratio < 100 for ratio in ratios)


def test_guidance_by_a_classifier_costs_at_most_35_percent_of_a_step() -> None:
    """At the sizes of the thesis, by operations; there is more to a step than the crop's share of its pixels."""
    step, guidance = guidance_cost.counted(narrower=1)
    assert (guidance_cost.CROP / guidance_cost.IMAGE) ** 2 < guidance / step <= 0.35


def test_the_difference_of_two_numbers_is_that_of_each_seed() -> None:
    """What seeds have in common is no part of its interval."""
    of_seed = {str(seed): [10.0 * seed, 1000.0 - seed] for seed in range(8)}
    volumes = {25.0: of_seed, 75.0: {seed: [a + 3, b - 50] for seed, (a, b) in of_seed.items()}}
    *_, difference = asked_number.rows_of(volumes)
    assert difference == ["75 less 25", "8", "3.0 (3.0 to 3.0)", "-50.0 (-50.0 to -50.0)"]
