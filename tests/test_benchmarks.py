"""What `make bench` compares can still be compared."""

from __future__ import annotations

import re

import pytest

from benchmarks import training_step


def test_the_peer_network_takes_our_training_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_step, "NUM_TURNS", 1)
    training_step.main()
    ratios = [float(ratio) for ratio in re.findall(r"ours, \w+ / MONAI, \w+: ([\d.]+)", capsys.readouterr().out)]
    assert len(ratios) == 3
    assert all(0 < ratio < 100 for ratio in ratios)
