"""What images are asked for on the command line: attributes, label maps, sources, tables; what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_medgen.batch import Batch, Condition, DataSpec, Part, Request
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.images.dicom_writer import Series, write_series
from lit_medgen.images.nifti import write_nifti
from lit_medgen.images.png import write_png
from lit_medgen.requests import RequestOptions, requested
from lit_medgen.sample_files import SampleFile, format_for, sample_names
from lit_medgen.sample_reading import read_voxels, scaled
from lit_medgen.sampling import asking_of_nodules, checked_attributes, like_people
from lit_medgen.training.generator import Generator

SPEC = DataSpec(
    1,
    (4, 5, 6),
    (1.0, 1.0, 1.0),
    classes=("air", "lung", "nodule"),
    attributes={"age": (50.0, 90.0), "sex": (0.0, 1.0)},
    codes=("sex",),
    slice_axis="axial",
    sources=("t1", "t2"),
    source_size=(2, 2, 3),
)
AFFINE = np.array([[1.0, 0, 0, -7], [0, 1, 0, 3], [0, 0, 1, 11], [0, 0, 0, 1]])


class Toy(Generator):
    """Made from what a test says."""

    attributes = ("age", "sex")

    def __init__(self, required: tuple[Part, ...] = (), optional: tuple[Part, ...] = ("attributes",)) -> None:
        super().__init__()
        self.required, self.optional = required, optional

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        raise NotImplementedError


MAPS, SOURCES, SLICES = Toy(("label_map",)), Toy(("source",)), Toy((), ("attributes", "image"))


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Two label maps, the second with a nodule."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for k, name in enumerate(("a", "b")):
        classes = np.ones(SPEC.size, dtype=np.float32)
        classes[0] = 2 * k
        write_nifti(folder / f"{name}.nii.gz", classes, AFFINE)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Two sources of two channels each, smaller than the images."""
    folder = tmp_path / "sources"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for channel, value in (("t1", 0.25), ("t2", 1.0)):
            write_nifti(folder / name / f"{channel}.nii.gz", np.full((2, 2, 3), value, dtype=np.float32), AFFINE)
    return folder


def test_of_maps_without_a_nodule_nothing_is_asked_that_is_of_nodules(
    maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a classifier asks, which guides in nodules alone: the manifest says of an image what it was asked to show."""
    model = Toy(("label_map",))
    model.take_spec(SPEC)
    model.nodule_attributes = frozenset({"sex"})
    options = RequestOptions(label_maps=str(maps), attributes={"age": 70, "sex": 1})
    requests = requested(options, model, SPEC, None)
    assert asking_of_nodules(model, requests).made_from == [
        {"label_map": "a.nii.gz", "age": 70},
        {"label_map": "b.nii.gz", "age": 70, "sex": 1},
    ]
    assert capsys.readouterr().out == "no nodule in 1 of 2 label maps, so their images are made without sex\n"
    with pytest.raises(InputError, match="no label map has a nodule that could be sex as asked"):
        asking_of_nodules(model, requests.chosen([0], [5]))
    unasked = requested(replace(options, attributes={"age": 70, "sex": None}), model, SPEC, None)
    assert asking_of_nodules(model, unasked) is unasked


def test_one_image_is_made_from_each_label_map(maps: Path) -> None:
    requests = requested(RequestOptions(label_maps=str(maps), attributes={"age": 70, "sex": None}), MAPS, SPEC, None)
    assert list(requests.seeds) == [0, 1]
    assert requests.parts == {"label_map", "attributes"}
    assert list(requests.made_from) == [{"label_map": "a.nii.gz", "age": 70.0}, {"label_map": "b.nii.gz", "age": 70.0}]
    both = requests.joined([0, 1])
    assert both.condition.label_map is not None
    assert both.condition.label_map.dtype == torch.int64
    assert both.condition.label_map[:, 0, 0].unique().tolist() == [0, 2]
    assert both.condition.attributes["age"].tolist() == [70, 70]
    assert both.condition.attributes["sex"].isnan().all()
    assert both.affine is not None
    np.testing.assert_allclose(both.affine.numpy(), [AFFINE, AFFINE])


def test_a_source_has_a_size_and_channels_of_its_own(sources: Path) -> None:
    requests = requested(RequestOptions(sources=str(sources)), SOURCES, SPEC, None)
    request = requests.joined([0, 1])
    assert request.condition.source is not None
    assert request.condition.source.shape == (2, 2, 2, 2, 3)
    assert request.condition.source[:, :, 0, 0, 0].tolist() == [[-0.5, 1.0]] * 2
    assert request.affine is not None
    np.testing.assert_allclose(request.affine[0], SPEC.affine())  # the sources lie on another grid than the images


def test_given_slices_of_a_source_are_kept(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", np.full(SPEC.size, 0.5, dtype=np.float32), AFFINE)
    spec = DataSpec(1, SPEC.size, SPEC.spacing_mm, slice_axis="axial")
    requests = requested(RequestOptions(sources=str(tmp_path), given=[1, 4]), SLICES, spec, None)
    condition = requests.joined([0]).condition
    assert requests.parts == {"image"}
    assert condition.source is None
    assert condition.image is not None
    assert condition.observed is not None
    assert condition.image.shape == (1, 1, *SPEC.size)
    assert condition.observed.nonzero()[:, 1].tolist() == [1, 4]


@pytest.mark.parametrize(
    ("seeds", "num", "expected"), [([7], None, [7, 7]), ([3, 9], None, [3, 9]), (None, 5, [0, 1, 2, 3, 4])]
)
def test_seeds_of_files(maps: Path, seeds: list[int] | None, num: int | None, expected: list[int]) -> None:
    requests = requested(RequestOptions(num=num, seeds=seeds, label_maps=str(maps)), MAPS, SPEC, None)
    assert list(requests.seeds) == expected
    assert [row["label_map"] for row in requests.made_from] == (["a.nii.gz", "b.nii.gz"] * 3)[: len(expected)]
    names = sample_names(requests.seeds, "synthetic")
    assert len(set(names)) == len(names)


def test_a_table_says_everything(maps: Path, tmp_path: Path) -> None:
    table = tmp_path / "wanted.csv"
    table.write_text("seed,label_map,age,sex\n5,maps/b.nii.gz,60,1\n5,maps/b.nii.gz,80,\n")
    requests = requested(RequestOptions(table=str(table)), MAPS, SPEC, None)
    assert list(requests.seeds) == [5, 5]
    assert requests.made_from[1] == {"label_map": "b.nii.gz", "age": 80.0}
    assert requests.joined([0, 1]).condition.attributes["age"].tolist() == [60, 80]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed,age\n-1,60\n", ["row 2", "seed", "'-1'"]),
        ("seed,age\n1,old\n", ["row 2", "age is 'old'"]),
        ("seed,age\n1,700\n", ["row 2", "age is 700", "50 to 90"]),
        ("seed,dose\n1,1\n", ["'dose'", "'age'"]),
        ("seed,age\n1,60\n,70\n", ["some rows have a seed"]),
        ("seed,age\n1\n", ["row 2", "as many cells"]),
        ("seed,label_map\n1,gone.nii\n", ["no file", "gone.nii"]),
        ("seed,given\n1,0 9\n", ["[0, 9]", "slices 0 to 5"]),
        ("seed,given\n1,0 3\n", ["row 2", "no source"]),
        ("seed,age,age\n1,60,70\n", ["two columns", "'age'"]),
        ("", ["no rows"]),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, text: str, words: list[str]) -> None:
    table = tmp_path / "wanted.csv"
    table.write_text(text)
    with pytest.raises((InputError, MissingDataError)) as error:
        requested(RequestOptions(table=str(table)), Toy((), ("attributes", "label_map", "image")), SPEC, None)
    assert all(word in str(error.value) for word in [*words, str(table)]), error.value


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (MAPS, {}, ["label maps", "--label_maps DIR", "--like test"]),
        (Toy(), {"label_maps": "maps"}, ["--label_maps", "attributes", "not from label maps"]),
        (SLICES, {"sources": "whole"}, ["--sources", "add --given"]),
        (SLICES, {"sources": "whole", "given": [6]}, ["--given [6]", "slices 0 to 5"]),
        (SLICES, {"given": [1]}, ["--given", "--sources DIR"]),
        (MAPS, {"label_maps": "maps", "like": "test"}, ["--like test"]),
        (MAPS, {"label_maps": "nowhere"}, ["no folder", "nowhere"]),
        (MAPS, {"label_maps": "empty"}, ["no images there"]),
        (MAPS, {"label_maps": "maps", "seeds": [1, 2, 3], "num": None}, None),
        (MAPS, {"label_maps": "three", "seeds": [1, 2]}, ["2 for 3 files"]),
        (MAPS, {"label_maps": "unknown"}, ["7 (1 voxels)", "0 to 2", "nodule"]),
        (MAPS, {"label_maps": "small"}, ["(2, 2, 3)", "(4, 5, 6)"]),
        (SOURCES, {"sources": "maps"}, ["a single image", "t1, t2"]),
        (Toy(), {"like": "test"}, ["--config FILE"]),
        (MAPS, {"table": "t.csv", "num": 3}, ["--requests", "leave out"]),
    ],
)
def test_what_cannot_be_asked(
    model: Toy, options: dict[str, Any], words: list[str] | None, maps: Path, tmp_path: Path
) -> None:
    for name, size, bad in (("unknown", SPEC.size, 7), ("small", (2, 2, 3), 1), ("whole", SPEC.size, 1)):
        classes = np.ones(size, dtype=np.float32)
        classes[0, 0, 0] = bad
        (tmp_path / name).mkdir()
        write_nifti(tmp_path / name / "a.nii", classes, AFFINE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "three").mkdir()
    for name in "abc":
        write_nifti(tmp_path / "three" / f"{name}.nii", np.ones(SPEC.size, dtype=np.float32), AFFINE)
    for key in ("label_maps", "sources"):
        if key in options:
            options = options | {key: str(tmp_path / options[key])}
    spec = SPEC if model is SOURCES else DataSpec(**{**vars(SPEC), "sources": (), "source_size": ()})
    if words is None:
        assert len(requested(RequestOptions(**options), model, spec, None)) == 3
        return
    with pytest.raises((InputError, MissingDataError)) as error:
        requested(RequestOptions(**options), model, spec, None)
    assert all(word in str(error.value) for word in words), error.value


def test_every_row_needs_what_the_model_needs(maps: Path) -> None:
    table = maps / "some.csv"
    table.write_text("seed,label_map\n1,a.nii.gz\n2,\n")
    with pytest.raises(InputError, match="row 3: no label_map"):
        requested(RequestOptions(table=str(table)), MAPS, SPEC, None)
    requests = requested(RequestOptions(table=str(table)), Toy((), ("label_map",)), SPEC, None).joined([0, 1])
    assert requests.affine is not None
    np.testing.assert_allclose(requests.affine, np.stack([AFFINE, SPEC.affine()]))


def test_fewer_images_than_files(maps: Path) -> None:
    requests = requested(RequestOptions(num=1, label_maps=str(maps)), MAPS, SPEC, None)
    assert [row["label_map"] for row in requests.made_from] == ["a.nii.gz"]


def test_folders_of_files_as_systems_leave_them(maps: Path) -> None:
    (maps / "a.nii.gz").rename(maps / "case.1.NII.gz")
    (maps / "b.nii.gz").rename(maps / "case.2.nii.gz")
    (maps / "._a.nii.gz").write_text("hidden")
    (maps / "notes.txt").write_text("no image")
    assert len(requested(RequestOptions(label_maps=str(maps)), MAPS, SPEC, None)) == 2
    (maps / "empty").mkdir()
    with pytest.raises(InputError, match="empty folder"):
        requested(RequestOptions(label_maps=str(maps)), MAPS, SPEC, None)


def test_label_maps_of_slices_are_pictures(tmp_path: Path) -> None:
    flat = DataSpec(1, (4, 6), (1.0, 1.0), orientation="", classes=("air", "lung"))
    write_png(tmp_path / "a.png", np.arange(24).reshape(4, 6) % 2 / 255)
    requests = requested(RequestOptions(label_maps=str(tmp_path)), Toy(("label_map",), ()), flat, None)
    label_map = requests.joined([0]).condition.label_map
    assert label_map is not None
    assert label_map[0, 0].tolist() == (torch.arange(24).view(4, 6) % 2).tolist()


def test_names_of_sources_with_capitals_and_dots(tmp_path: Path) -> None:
    flat = DataSpec(1, (4, 6), (1.0, 1.0), orientation="")
    for path in (tmp_path / "A.PNG", tmp_path / "1.2.840" / "image.png"):
        path.parent.mkdir(exist_ok=True)
        write_png(path.with_name("small.png"), np.ones((4, 6)))
        path.with_name("small.png").rename(path)
    assert [
        row["source"] for row in requested(RequestOptions(sources=str(tmp_path)), SOURCES, flat, None).made_from
    ] == [
        "1.2.840",
        "A.PNG",
    ]


def test_parts_that_some_rows_lack_are_absent() -> None:
    full = Condition({"age": torch.tensor([60.0])}, torch.ones(1, 1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 3, 3))
    joined = Request.join([Request([1], full), Request([2])]).condition
    assert joined.label_map is not None
    assert joined.source is not None
    assert joined.attributes["age"][0] == 60
    assert joined.attributes["age"][1].isnan()
    assert (joined.label_map[1] == -1).all()
    assert joined.source[1].isnan().all()
    dropped = joined.drop(torch.tensor([True, False]))
    assert dropped.label_map is not None
    assert dropped.source is not None
    assert (dropped.label_map == -1).all()
    assert dropped.source.isnan().all()
    assert dropped.attributes["age"].isnan().all()


def test_an_attribute_that_the_data_lacks_is_named() -> None:
    class Data:
        spec = DataSpec(1, (4, 4), (1.0, 1.0), attributes={"age": (1.0, 2.0)})

    with pytest.raises(InputError, match="no 'sex' of the test people"):
        like_people(Toy(), Data(), "test", None)  # type: ignore[arg-type]


def test_channels_of_a_source_go_by_their_names(sources: Path) -> None:
    for name in ("a", "b"):
        (sources / name / "t1.nii.gz").rename(sources / name / "zz.nii.gz")
    with pytest.raises(InputError, match=r"files t2, zz; expected .* t1, t2"):
        requested(RequestOptions(sources=str(sources)), SOURCES, SPEC, None)
    for name in ("a", "b"):
        (sources / name / "t2.nii.gz").rename(sources / name / "t1.nii.gz")
        (sources / name / "zz.nii.gz").rename(sources / name / "t2.nii.gz")
    source = requested(RequestOptions(sources=str(sources)), SOURCES, SPEC, None).joined([0]).condition.source
    assert source is not None
    assert source[0, :, 0, 0, 0].tolist() == [1.0, -0.5]


def test_voxels_of_another_size_are_refused(maps: Path) -> None:
    write_nifti(maps / "a.nii.gz", np.ones(SPEC.size, dtype=np.float32), np.diag([3.0, 1.0, 1.0, 1.0]))
    with pytest.raises(InputError, match=r"a\.nii\.gz: voxels of 3 x 1 x 1 mm; expected 1 x 1 x 1 mm"):
        requested(RequestOptions(label_maps=str(maps)), MAPS, SPEC, None)


FLAT = DataSpec(1, (6, 4), (0.5, 0.5), orientation="LP", classes=("air", "lung", "nodule"), intensity_unit="HU")


def test_a_label_map_is_the_same_in_every_format(tmp_path: Path) -> None:
    """As a grey PNG, with a palette, as NIfTI with its affine, as a DICOM slice: the same pixels, as they are shown."""
    classes = np.random.default_rng(0).integers(0, 3, FLAT.size).astype(np.uint8)
    write_png(tmp_path / "grey.png", classes / 255)
    picture = Image.fromarray(classes.T).convert("P")
    picture.putpalette([0, 0, 0, 0, 0, 255, 255, 0, 0])
    picture.save(tmp_path / "palette.png")
    affine = FLAT.affine().numpy()  # the patient's left on the right, so the first axis runs to the left
    write_nifti(tmp_path / "shown.nii.gz", classes[..., None], affine)
    turned = affine @ np.array([[-1.0, 0, 0, 5], [0, -1, 0, 3], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_nifti(tmp_path / "world.nii.gz", classes[::-1, ::-1, None], turned)
    write_series(tmp_path / "dicom", classes.astype(np.int16), np.diag([0.5, 0.5, 1.0]), Series())
    requests = requested(RequestOptions(label_maps=str(tmp_path)), Toy(("label_map",), ()), FLAT, None)
    assert {row["label_map"] for row in requests.made_from} == {
        "grey.png",
        "palette.png",
        "shown.nii.gz",
        "world.nii.gz",
        "dicom",
    }
    label_maps = requests.joined(range(5)).condition.label_map
    assert label_maps is not None
    for label_map in label_maps[:, 0]:
        np.testing.assert_array_equal(label_map, classes)
    for index, row in enumerate(requests.made_from):
        if str(row["label_map"]).endswith(".nii.gz"):
            own = requests.read(index).affine
            assert own is not None
            np.testing.assert_allclose(own[0], affine, atol=1e-6)


def test_a_2d_image_is_the_same_when_it_comes_back_from_nifti(tmp_path: Path) -> None:
    image = torch.rand(1, *FLAT.size) * 2 - 1
    spec = replace(FLAT, intensity_window=(-1000.0, 500.0))
    SampleFile(format_for(spec, "nifti"), spec, "synthetic", "ab").write(tmp_path, "sample_1", image, None)
    values, affine, window = read_voxels(tmp_path / "sample_1.nii.gz", spec)
    np.testing.assert_allclose(affine, spec.affine(), atol=1e-6)
    torch.testing.assert_close(scaled(values, window, spec), image[0], atol=1e-6, rtol=0)


NAMED = replace(SPEC, category_names={"sex": ("F", "M")})


def test_categories_are_asked_for_by_name_or_number(tmp_path: Path) -> None:
    found = [checked_attributes(Toy(), {"sex": value}, NAMED)["sex"] for value in ("F", "m", "1", 0)]
    assert found == [0, 1, 1, 0]
    table = tmp_path / "people.csv"
    table.write_text("age,sex\n60,M\n80,\n70,0\n")
    requests = requested(RequestOptions(table=str(table)), Toy(), NAMED, None)
    sexes = requests.joined([0, 1, 2]).condition.attributes["sex"]
    assert torch.equal(sexes.nan_to_num(-1), torch.tensor([1.0, -1.0, 0.0]))


@pytest.mark.parametrize(
    ("spec", "value", "match"),
    [(NAMED, "X", "sex is 'X'; give F, M or the number of one"), (SPEC, "F", "sex is 'F'; give a number, or nothing")],
)
def test_unknown_names_are_refused_with_those_known(spec: DataSpec, value: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        checked_attributes(Toy(), {"sex": value}, spec)
