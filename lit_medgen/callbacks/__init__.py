"""Callbacks: averaged weights, checkpoints, sample grids, throughput, plots, reports; switched in YAML."""

from lit_medgen.callbacks.checkpoints import Checkpoints
from lit_medgen.callbacks.ema import EMA
from lit_medgen.callbacks.plots import Plots
from lit_medgen.callbacks.report import Report
from lit_medgen.callbacks.sample_grid import SampleGrid
from lit_medgen.callbacks.throughput import Throughput

__all__ = ["EMA", "Checkpoints", "Plots", "Report", "SampleGrid", "Throughput"]
