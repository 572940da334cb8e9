"""The data that a config describes, for benchmarks."""

from __future__ import annotations

from typing import Any

from data_modules.base import MedicalDataModule
from lit_medgen.estimate.experiments import built_data


def data_of(section: dict[str, Any], **changed: Any) -> MedicalDataModule:
    """The data that a section of a config describes, but for some arguments; set up."""
    section = section | {"init_args": section["init_args"] | changed}
    data = built_data({"data": section})
    data.prepare_data()
    data.setup("test")
    return data
