"""pylidc 0.2.3 made to run with today's numpy, setuptools and Python, without touching them."""

from __future__ import annotations

import configparser
import importlib
import os
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("Annotation", "Contour", "Scan", "utils")


class OldNumpy:
    """numpy with the names that pylidc takes from it and that numpy no longer has."""

    int, float, bool = int, float, bool

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def import_pylidc(home: Path) -> types.ModuleType:
    """pylidc, with `home` as the folder of its settings: sets HOME, since pylidc looks there at every call.

    `home` must hold a .pylidcrc, or pylidc writes an empty one.
    """
    os.environ["HOME"] = str(home)
    if "pylidc" in sys.modules:
        return sys.modules["pylidc"]
    before = sys.modules.get("pkg_resources")
    stub = types.ModuleType("pkg_resources")
    stub.resource_filename = _resource_filename  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = stub
    try:
        pylidc = importlib.import_module("pylidc")
        importlib.import_module("pylidc.utils")
    finally:
        if before is None:
            del sys.modules["pkg_resources"]
        else:
            sys.modules["pkg_resources"] = before
    for part in PARTS:  # in sys.modules, since pylidc.Scan itself is the class
        sys.modules[f"pylidc.{part}"].np = OldNumpy()  # type: ignore[attr-defined]
    parsers = types.SimpleNamespace(**vars(configparser))
    parsers.SafeConfigParser = configparser.ConfigParser
    sys.modules["pylidc.Scan"].configparser = parsers  # type: ignore[attr-defined]
    return pylidc


def _resource_filename(package: str, name: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).with_name(name))
