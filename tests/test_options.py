"""Options of classes that configs name are known by their types, not by lists of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from data_modules import ADNIDataModule, FolderDataModule
from lit_medgen.diffusion import Sampler
from lit_medgen.options import takes
from lit_medgen.trust import classes


class Classifier:
    """A method's part that nobody has heard of, with a path of its own."""

    def __init__(
        self,
        weights_file: str | None,
        folder_of_maps: Path,
        any_path: PathLike[str],
        names: Sequence[str] | None,
        kind: Literal["a", "b"],
        marked: Annotated[str, "a path"],
        words: Mapping[str, Mapping[str, float]],
        width: int,
        walker: Sampler | str,
        anything: Any,
        bare: list,  # type: ignore[type-arg]
    ) -> None: ...


class Reader(Classifier):
    def __init__(self, table: str, **more: Any) -> None: ...


@pytest.mark.parametrize("of", [Classifier, Reader])
@pytest.mark.parametrize(
    ("option", "plain", "text"),
    [
        *((name, True, True) for name in ("weights_file", "folder_of_maps", "any_path", "names", "kind", "marked")),
        *(("words", True, True), ("width", True, False)),
        *((name, False, False) for name in ("walker", "anything", "bare", "missing")),
    ],
)
def test_a_new_option_is_known_by_its_type(of: type, option: str, plain: bool, text: bool) -> None:
    assert (takes(of, option, text=False), takes(of, option, text=True)) == (plain, text)


def test_options_of_shipped_classes() -> None:
    for of in (ADNIDataModule, FolderDataModule, None):
        assert all(takes(of, name, text=True) for name in ("root", "store_dir", "table"))
        assert not takes(of, "preprocessing", text=False)
    assert takes(None, "first_stage", text=True)
    assert takes(None, "max_steps", text=False)
    assert takes(ModelCheckpoint, "monitor", text=True)
    assert not takes(None, "monitor", text=True)  # of no class of ours: what it takes is not known
    assert not takes(None, "sampler", text=False)


def test_an_option_that_another_class_reads_as_a_class_is_looked_at() -> None:
    """A later file may hand the value over to a class whose option of the same name takes a class."""

    class Harmless:
        def __init__(self, sampler: str, words: str) -> None: ...

    assert takes(Harmless, "words", text=True)
    assert not takes(Harmless, "sampler", text=True)


def test_a_path_of_a_class_that_is_not_ours() -> None:
    path = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "os.system"}}
    assert list(classes({"trainer": {"callbacks": [path]}})) == ["lightning.pytorch.callbacks.ModelCheckpoint"]
    assert list(classes({"trainer": {"callbacks": [{"init_args": {"monitor": "os.system"}}]}})) == ["os.system"]
