"""What is made of wishes: what `sample` would make, with every number put back, and files that say what they are."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from test_requests import SPEC as VOLUMES
from test_requests import Toy
from torch import Tensor, nn

from lit_medgen.app.desk import MIN_MAX_STEPS, Desk, Wishes, servable
from lit_medgen.app.maps import LabelMap
from lit_medgen.batch import Condition, DataSpec
from lit_medgen.diffusion import DDIM
from lit_medgen.errors import InputError
from lit_medgen.images.label_maps import write_label_map
from lit_medgen.requests import RequestOptions, requested
from lit_medgen.seeds import SeededNoise

FLAT = DataSpec(
    1,
    (8, 6),
    (2.0, 3.0),
    orientation="LP",
    intensity_window=(-1000.0, 400.0),
    intensity_unit="HU",
    classes=("air", "lung", "nodule"),
    attributes={"age": (50.0, 90.0), "sex": (0.0, 1.0)},
    codes=("sex",),
)
HASH = "ab" * 32


class Drawing(Toy):
    """Noise, brighter where the map has higher classes and by the age; it counts its steps and its scales."""

    def __init__(self, *parts: Any, spec: DataSpec = FLAT) -> None:
        super().__init__(*parts)
        self.take_spec(spec)
        self.sampler, self.seen = DDIM(7), list[int]()
        self.register_parameter("weight", nn.Parameter(torch.zeros(1)))

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        self.seen.append(self.sampler.num_steps)
        image = 0.1 * SeededNoise(seeds)((1, *self.needed_spec().size))
        if condition.label_map is not None:
            image = image + 0.2 * condition.label_map
        return image + condition.attributes.get("age", torch.zeros(1)).nan_to_num()[0] / 1000


def desk(folder: Path, *parts: Any, spec: DataSpec = FLAT) -> Desk:
    return Desk(Drawing(*parts, spec=spec).eval(), HASH, folder)


def painted() -> LabelMap:
    return LabelMap(np.arange(48).reshape(8, 6) % 3)


def test_a_painted_map_makes_the_image_of_its_file(tmp_path: Path) -> None:
    """The request is that of `--label_maps`, bit for bit."""
    (tmp_path / "maps").mkdir()
    write_label_map(tmp_path / "maps" / "a.png", painted().classes, FLAT.spacing_mm)
    at = desk(tmp_path, ("label_map",))
    options = RequestOptions(seeds=[5], label_maps=str(tmp_path / "maps"), attributes={"age": 70, "sex": "1"})
    expected = at.model.predict_step(requested(options, at.model, FLAT, None).joined([0]))
    made = at.make(Wishes(5, {"age": 70, "sex": "1"}, label_map=painted()))
    assert torch.equal(made.image, expected[0])
    assert made.affine is not None
    assert torch.equal(made.affine, FLAT.affine())
    assert (made.name, made.origin) == ("sample_00000005", "synthetic")
    assert not torch.equal(at.make(Wishes(5, label_map=painted())).image, made.image)


def test_seeds_follow_one_another_and_each_is_alone(tmp_path: Path) -> None:
    at = desk(tmp_path)
    several = list(at.make_several(Wishes(3), 3))
    assert [made.name[-1] for made in several] == ["3", "4", "5"]
    assert all(torch.equal(made.image, at.make(Wishes(3 + k)).image) for k, made in enumerate(several))


def test_steps_are_taken_once_and_put_back(tmp_path: Path) -> None:
    at = desk(tmp_path)
    model: Any = at.model
    for steps in (3, None):
        at.make(Wishes(0, num_steps=steps))
    assert model.seen == [3, 7]
    assert at.max_steps == MIN_MAX_STEPS
    model.num_steps = 4  # of levels that were learned
    assert at.max_steps == 4


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        (Wishes(-1), "seed"),
        (Wishes(0, {"age": 300}), "50 to 90"),
        (Wishes(0, {"colour": 1}), "'colour'"),
        (Wishes(0, guidance={"strength": 2}), "nothing that guides"),
        (Wishes(0, label_map=painted()), "not from label maps"),
    ],
)
def test_wishes_that_sample_refuses_are_refused(tmp_path: Path, wishes: Wishes, named: str) -> None:
    with pytest.raises(InputError, match=named):
        desk(tmp_path).make(wishes)


@pytest.mark.parametrize(
    ("model", "verb"),
    [
        (nn.Identity(), "evaluate"),
        (Drawing((), ("text",)), "sample --text"),
        (Drawing(("label_map", "source")), "use sample"),
        (Drawing(("source",), spec=VOLUMES), "sample --sources"),
    ],
)
def test_what_the_page_cannot_ask_for_names_the_verb_that_can(model: Any, verb: str) -> None:
    with pytest.raises(InputError, match=verb):
        servable(model)
    assert servable(fine := Drawing()) is fine


def test_of_a_map_without_a_nodule_nothing_is_asked_that_a_classifier_of_nodules_tells(tmp_path: Path) -> None:
    wishes = Wishes(0, {"sex": 1.0}, label_map=LabelMap(painted().classes % 2))
    at = desk(tmp_path, ("label_map",))
    assert at.requests(wishes).made_from == [{"sex": 1.0}]  # another model may be made from both
    at.model.nodule_attributes = frozenset({"sex"})
    with pytest.raises(InputError, match=r"no label map has a nodule that could be sex as asked; paint one"):
        at.requests(wishes)
    assert at.requests(replace(wishes, attributes={"age": 70.0, "sex": None})).made_from == [{"age": 70.0}]
    assert at.requests(replace(wishes, label_map=painted())).made_from == [{"sex": 1.0}]
    assert at.requests(replace(wishes, attributes={})).made_from == [{}]


def test_a_slice_becomes_a_nifti_and_a_dicom_that_says_it_is_synthetic(tmp_path: Path) -> None:
    at = desk(tmp_path, ("label_map",))
    made = at.make(Wishes(7, label_map=painted()))
    image = nib.load(at.file(made, "nifti", tmp_path / "a"))
    np.testing.assert_allclose(image.get_fdata()[..., 0], made.values(FLAT)[0], atol=1e-3)
    np.testing.assert_allclose(image.affine, FLAT.affine().numpy())
    files = [pydicom.dcmread(at.file(made, "dicom", tmp_path / name)) for name in ("b", "c")]
    for data in files:
        assert data.SyntheticData == "YES"
        assert data.PatientName == f"SYNTHETIC^SYN-{HASH[:12]}-7"
        shown = data.pixel_array.T * data.RescaleSlope + data.RescaleIntercept
        np.testing.assert_allclose(shown, made.values(FLAT)[0], atol=0.51)
    for uid in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert files[0][uid] != files[1][uid]


def test_a_volume_is_a_zip_of_its_slices(tmp_path: Path) -> None:
    spec = replace(VOLUMES, sources=(), source_size=(), slice_axis="")
    at = desk(tmp_path, spec=spec)
    path = at.file(at.make(Wishes(1)), "dicom", tmp_path / "files")
    assert path.name == "sample_00000001.zip"
    names = zipfile.ZipFile(path).namelist()
    assert sorted(name for name in names if name.endswith(".dcm")) == [
        f"sample_00000001/1-{k:03}.dcm" for k in range(1, spec.size[2] + 1)
    ]
