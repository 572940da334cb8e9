"""Callbacks: averaged weights, checkpoints, sample grids, throughput, use of a codebook, reports; switched in YAML."""

from lit_medgen.callbacks.checkpoints import Checkpoints
from lit_medgen.callbacks.code_usage import CodeUsage
from lit_medgen.callbacks.ema import EMA
from lit_medgen.callbacks.report import Report
from lit_medgen.callbacks.sample_grid import SampleGrid
from lit_medgen.callbacks.throughput import Throughput

__all__ = ["EMA", "Checkpoints", "CodeUsage", "Report", "SampleGrid", "Throughput"]
