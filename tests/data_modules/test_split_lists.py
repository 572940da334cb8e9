"""Splits by lists: of people and of images, given by the user; who is in none, in two, or nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.folder import FolderDataModule
from data_modules.recipes.volumes import Preprocessing
from data_modules.records import image_hash, person_hash
from data_modules.split_lists import NameList, Sides, divide, lines_about
from data_modules.splits import SPLITS, identity, split_of
from lit_medgen.errors import InputError
from lit_medgen.training.frozen import refuse_other_people

FRACTIONS = (0.5, 0.25, 0.25)
NAMES = [f"person {i}" for i in range(30)]
MEMBERS = [(person_hash(name), image_hash(f"{name}/{visit}")) for name in NAMES for visit in "ab"]
PEOPLE = [f"sub-{i:02}" for i in range(12)]
Opened = Callable[..., FolderDataModule]


def divided(lists: dict[str, list[str]], gone: set[str] | None = None) -> Sides:
    named = {key: NameList(key, {name: line for line, name in enumerate(names, 1)}) for key, names in lists.items()}
    return divide(named, MEMBERS, gone or set(), str, lambda name: None, FRACTIONS, 0)


@pytest.fixture
def opened(tmp_path: Path, small: Preprocessing, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Sets up the cohort with lists, which are given as names and written as files; one store for all tests."""
    store = tmp_path_factory.getbasetemp() / "of_lists"

    def open_(lists: dict[str, list[str]] | None = None, **options: Any) -> FolderDataModule:
        for key, names in (lists or {}).items():
            (tmp_path / f"{key}.txt").write_text("\n".join(names))
        files = None if lists is None else {key: str(tmp_path / f"{key}.txt") for key in lists}
        defaults: dict[str, Any] = {"preprocessing": small, "fractions": FRACTIONS, "num_jobs": 1}
        data = FolderDataModule(str(cohort), store_dir=str(store), split_files=files, **{**defaults, **options})
        data.prepare_data()
        data.setup("predict")
        return data

    return open_


def people_of(data: FolderDataModule) -> dict[str, set[str]]:
    return {split: set(data.people(split).values()) for split in SPLITS}


def hashed(names: list[str]) -> set[str]:
    return set(map(person_hash, names))


@settings(max_examples=20)
@given(st.sets(st.sampled_from(NAMES), min_size=1), st.sets(st.sampled_from(NAMES), min_size=1))
def test_others_stay_where_they_are_whoever_is_tested(first: set[str], second: set[str]) -> None:
    a, b = (divided({"test": sorted(tested)}) for tested in (first, second))
    for name in NAMES:
        person = person_hash(name)
        assert (a.split_of(person) == "test") == (name in first)
        if name not in first | second:
            assert a.split_of(person) == b.split_of(person) == split_of(person, (2 / 3, 1 / 3, 0.0), 0)


@settings(max_examples=20)
@given(st.lists(st.sampled_from([*SPLITS, ""]), min_size=30, max_size=30))
def test_everybody_is_where_the_lists_say_and_else_nowhere(sides: list[str]) -> None:
    lists = {split: [name for name, side in zip(NAMES, sides, strict=True) if side == split] for split in SPLITS}
    if not all(lists.values()):
        return
    found = divided(lists)
    for name, side in zip(NAMES, sides, strict=True):
        assert (found.split_of(person_hash(name)) or "") == side


def test_a_part_without_a_list_is_taken_from_the_rest() -> None:
    listed, rest = NAMES[:10], set(map(person_hash, NAMES[10:]))
    for keys, expected in (
        (("train",), {"val", "test"}),
        (("val",), {"train", "test"}),
        (("test",), {"train", "val"}),
        (("train", "val"), {"test"}),
        (("train_val",), {"test"}),
        (("train_val", "test"), set()),
    ):
        lists = {key: listed[k::2] if len(keys) > 1 else listed for k, key in enumerate(keys)}
        found = divided(lists)
        assert {part for person in rest if (part := found.split_of(person))} == expected
    assert {found.split_of(person_hash(name)) for name in lists["train_val"]} <= {"train", "val"}


def test_lists_that_say_what_the_hash_says_make_the_same_split(opened: Opened) -> None:
    hashes = opened()
    sides = {split: [name for name in PEOPLE if person_hash(name) in people_of(hashes)[split]] for split in SPLITS}
    lists = opened(sides)
    assert people_of(lists) == people_of(hashes)
    assert lists.spec.people == hashes.spec.people
    refuse_other_people(hashes.spec, lists.spec, "the same people")
    swapped = opened(sides | {"train": sides["test"], "test": sides["train"]})
    with pytest.raises(InputError, match="another split of people"):
        refuse_other_people(hashes.spec, swapped.spec, "others")


def test_images_are_named_by_their_paths(opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    """With suffix or without; what is not named of a person is left out, and never falls to another part."""
    path = "{0}/{0}_ses-{1}_T1w".format
    lists = {
        "train": [path(name, 1) for name in PEOPLE[:6]] + [path(PEOPLE[0], 2)],
        "val": [f"{path(name, 2)}.nii.gz" for name in PEOPLE[6:8]],
        "test": PEOPLE[8:11],
    }
    data = opened(lists)
    assert people_of(data) == {"train": hashed(PEOPLE[:6]), "val": hashed(PEOPLE[6:8]), "test": hashed(PEOPLE[8:11])}
    assert {split: len(data.records[split]) for split in SPLITS} == {"train": 7, "val": 2, "test": 6}
    assert data.spec.people["test"] == identity(hashed(PEOPLE[8:11]))
    said = capsys.readouterr().out
    assert "leave out 1 people who are in none and 7 images that none names" in said
    assert "sub-" not in said.replace("of_lists", "")


def test_who_left_is_of_the_part_that_their_list_names(opened: Opened, tmp_path: Path) -> None:
    lists = {"test": PEOPLE[:3]}
    before = opened(lists)
    (tmp_path / "gone.txt").write_text(PEOPLE[1])
    after = opened(lists, exclude=str(tmp_path / "gone.txt"))
    assert people_of(after) == {split: people - hashed([PEOPLE[1]]) for split, people in people_of(before).items()}
    assert after.spec.leaving["test"] == (person_hash(PEOPLE[1]),)
    refuse_other_people(before.spec, after.spec, "who left is told")


def test_who_left_may_be_of_any_part_if_images_alone_were_named(opened: Opened, tmp_path: Path) -> None:
    lists = {"test": [f"{name}/{name}_ses-{visit}_T1w.nii.gz" for name in PEOPLE[:3] for visit in (1, 2)]}
    before = opened(lists)
    (tmp_path / "gone.txt").write_text(PEOPLE[1])
    refuse_other_people(before.spec, opened(lists, exclude=str(tmp_path / "gone.txt")).spec, "who left is told")


@pytest.mark.parametrize(
    ("lists", "options", "words"),
    [
        (
            {"test": ["nobody", "none"]},
            {},
            r"split_files\.test: .* none of its 2 names is that of a person or an image",
        ),
        (
            {"test": PEOPLE[:3], "val": PEOPLE[2:4]},
            {},
            r"test\.txt: 1 people \(line 3\) are in the list of val as well",
        ),
        ({"test": PEOPLE[:1], "train": ["sub-00/sub-00_ses-2_T1w"]}, {}, r"1 people \(line 1\) are in the list of"),
        ({"test": []}, {}, "is empty"),
        ({"tset": PEOPLE}, {}, r"split_files names 'tset'; give files for some of train, val, test, train_val"),
        ({}, {}, "split_files is empty"),
        ({"train_val": PEOPLE[:2], "val": PEOPLE[2:]}, {}, "train_val is train and val together"),
        ({"test": PEOPLE[:3]}, {"fold": "0 of 3"}, "split_files and fold, '0 of 3', exclude each other"),
        ({"test": PEOPLE}, {}, r"lists \(.*\) leave no training people of the 12 there are; change them"),
    ],
)
def test_lists_that_cannot_be_are_one_line(
    lists: dict[str, list[str]], options: dict[str, Any], words: str, opened: Opened
) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        opened(lists, **options)
    assert "\n" not in str(refusal.value)
    assert "sub-" not in str(refusal.value)


def test_a_list_that_is_not_there_is_named(opened: Opened, cohort: Path, small: Preprocessing) -> None:
    data = FolderDataModule(str(cohort), preprocessing=small, split_files={"test": "lost.txt"})
    with pytest.raises(InputError, match=r"split_files\.test: lost\.txt cannot be read"):
        data.prepare_data()


def test_names_of_nobody_are_counted_and_not_told() -> None:
    sides = divided({"test": ["stranger", NAMES[0], "another"], "train_val": NAMES[1:]})
    assert lines_about(sides, [], True) == ["test: 2 of 3 names are of no person or image here, the first in line 1"]
    assert not lines_about(sides, [], False)
