"""Data modules: from raw folders to batches. `class_path: data_modules.ADNIDataModule` in a config.

What stands here is imported when it is asked for: a worker of `prepare` would wait seconds for Lightning and PyTorch,
which it does not need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_modules.adni import ADNIDataModule
    from data_modules.augmentation import (
        Augmentation,
        BiasField,
        Flip,
        Gamma,
        Geometric,
        Intensity,
        Noise,
        Rotation,
        Shift,
        Zoom,
    )
    from data_modules.base import MedicalDataModule
    from data_modules.chestxray import ChestXrayDataModule
    from data_modules.folder import FolderDataModule
    from data_modules.lidc.lidc import LIDCDataModule
    from data_modules.monai_transform import MonaiTransform
    from data_modules.recipes.ct_slices import CTSlices
    from data_modules.recipes.volumes import Preprocessing
    from data_modules.slice_sets import ContiguousDraw, FDMDraw, SliceSets, UniformDraw
    from data_modules.sources import Rejected, Scan, TarMember, ZipMember
    from data_modules.ukbiobank import UKBiobankDataModule
    from data_modules.views import Crop, OneSlice, View, Volume

__all__ = [
    "ADNIDataModule",
    "Augmentation",
    "BiasField",
    "CTSlices",
    "ChestXrayDataModule",
    "ContiguousDraw",
    "Crop",
    "FDMDraw",
    "Flip",
    "FolderDataModule",
    "Gamma",
    "Geometric",
    "Intensity",
    "LIDCDataModule",
    "MedicalDataModule",
    "MonaiTransform",
    "Noise",
    "OneSlice",
    "Preprocessing",
    "Rejected",
    "Rotation",
    "Scan",
    "Shift",
    "SliceSets",
    "TarMember",
    "UKBiobankDataModule",
    "UniformDraw",
    "View",
    "Volume",
    "ZipMember",
    "Zoom",
]

_FILES = {
    "adni": ["ADNIDataModule"],
    "augmentation": [
        *("Augmentation", "BiasField", "Flip", "Gamma", "Geometric", "Intensity", "Noise", "Rotation", "Shift"),
        "Zoom",
    ],
    "base": ["MedicalDataModule"],
    "chestxray": ["ChestXrayDataModule"],
    "folder": ["FolderDataModule"],
    "lidc.lidc": ["LIDCDataModule"],
    "monai_transform": ["MonaiTransform"],
    "recipes.ct_slices": ["CTSlices"],
    "recipes.volumes": ["Preprocessing"],
    "slice_sets": ["ContiguousDraw", "FDMDraw", "SliceSets", "UniformDraw"],
    "sources": ["Rejected", "Scan", "TarMember", "ZipMember"],
    "ukbiobank": ["UKBiobankDataModule"],
    "views": ["Crop", "OneSlice", "View", "Volume"],
}


def __getattr__(name: str) -> Any:
    """The class of that name, from its file."""
    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
