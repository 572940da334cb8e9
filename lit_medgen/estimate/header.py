"""The line that the header of a config has of its estimate."""

from __future__ import annotations

from lit_medgen.estimate.command import GIB, in_words
from lit_medgen.estimate.costs import Estimate

LABEL = "# Costs:    "


def header_line(estimate: Estimate, precision: str) -> str:
    """Parameters, and operations and memory of a step and of a sample, as the header of a config has them."""
    frozen = f", {estimate.frozen:,} frozen" if estimate.frozen else ""
    parts = [f"a step {in_words(estimate.step.flops)}FLOP, {estimate.step.peak / GIB:.2f} GiB"]
    if estimate.sample:
        parts += [f"a sample {in_words(estimate.sample.flops)}FLOP, {estimate.sample.peak / GIB:.2f} GiB"]
    return f"{LABEL}{estimate.trained:,} parameters{frozen}; {'; '.join(parts)} (`estimate`, {precision})."
