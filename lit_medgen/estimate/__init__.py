"""Estimates: parameters, operations, memory and hours of an experiment from its config, on fake tensors."""

from lit_medgen.estimate.command import estimate

__all__ = ["estimate"]
