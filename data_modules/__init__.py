"""Data modules: from raw folders to batches. `class_path: data_modules.ADNIDataModule` in a config."""

from data_modules.adni import ADNIDataModule
from data_modules.folder import FolderDataModule
from data_modules.lidc import LIDCDataModule
from data_modules.lidc_slices import CTSlices
from data_modules.preprocessing import Preprocessing
from data_modules.slices import FDMDraw, OneSlice, UniformDraw

__all__ = [
    "ADNIDataModule",
    "CTSlices",
    "FDMDraw",
    "FolderDataModule",
    "LIDCDataModule",
    "OneSlice",
    "Preprocessing",
    "UniformDraw",
]
