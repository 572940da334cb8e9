"""The data that a config describes, for benchmarks."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from data_modules.base import MedicalDataModule


def data_of(section: dict[str, Any], **changed: Any) -> MedicalDataModule:
    """The data that a section of a config describes, but for some arguments; set up."""
    section = section | {"init_args": section["init_args"] | changed}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MedicalDataModule, "data", required=True)
    data: MedicalDataModule = parser.instantiate(parser.parse_object({"data": section})).data
    data.prepare_data()
    data.setup("test")
    return data
