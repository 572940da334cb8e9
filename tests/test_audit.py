"""Laws of the audit: thresholds, copies, C_T, membership; planted copies are found; the verb and `sample`."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from tiny_run import ROOT, one_line
from torch import Tensor, nn

from lit_medgen.__main__ import main
from lit_medgen.batch import Batch, Condition, DataSpec, Images
from lit_medgen.callbacks.sample_audit import NOT_POSSIBLE, SampleAudit
from lit_medgen.checkpoints import read_spec
from lit_medgen.diffusion import DDIM
from lit_medgen.diffusion.heat import dissipate
from lit_medgen.errors import InputError
from lit_medgen.evaluation.audit import audit, planted, write_audit
from lit_medgen.evaluation.audit_reference import Reference, training_images
from lit_medgen.evaluation.audit_views import coarse, learn, moved, turned, voxels, with_gamma
from lit_medgen.evaluation.copies import (
    Nearest,
    Threshold,
    data_copying,
    mean_leaked,
    nearest,
    persons,
    share,
    z_of_ranks,
)
from lit_medgen.evaluation.membership import membership, separated, true_positives
from lit_medgen.images.nifti import read_nifti
from lit_medgen.images.png import write_png
from lit_medgen.methods import DDPM
from lit_medgen.networks import UNet

SIZE = (32, 24)


def people(num: int, seed: int, size: tuple[int, ...] = SIZE) -> Tensor:
    """Images of so many people who are alike: the same disc, with smooth details of their own."""
    random = torch.Generator().manual_seed(seed)
    own = dissipate(torch.randn(num, 1, *size, generator=random), torch.full((num,), 1.5))
    place = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    disc = (sum(axis**2 for axis in place) < 0.8).float()
    return ((0.3 + own) * disc * 2 - 1).clamp(-1, 1)


class ToyData:
    """Data of people in memory, one image each."""

    anatomy, digest = "", "0" * 64

    def __init__(self, cache: Path, sizes: dict[str, int], size: tuple[int, ...] = SIZE) -> None:
        self.cache, self.spec = cache, DataSpec(1, size, (1.0,) * len(size), people={"train": "toy"})
        self.of = {split: people(num, seed, size) for seed, (split, num) in enumerate(sizes.items())}
        self.num_read = 0

    def images(self, split: str, one_per_person: bool = False, limit: int | None = None) -> Images:
        def read(indices: Any) -> Tensor:
            self.num_read += split == "train"
            return self.of[split][list(indices)]

        names = [f"{split}{i}" for i in range(len(self.of[split]))][:limit]
        return Images(names, names, read)

    def people(self, split: str) -> dict[str, str]:
        return {name: name for name in self.images(split).keys}

    def seen(self, split: str) -> list[tuple[str, int]]:
        return [(name, -1) for name in self.images(split).keys]

    def stored(self, split: str, first: int = 0) -> Any:
        for i, image in enumerate(self.of[split][first:], first):
            yield Batch(image[None], [f"{split}{i}"], torch.eye(4)[None])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ToyData:
    return ToyData(tmp_path_factory.mktemp("store"), {"train": 150, "val": 20, "test": 40})


FACTS = {"source": "toy", "name": "toy", "method": "Toy"}


# Thresholds and shares.


@pytest.mark.parametrize(("num", "asked"), [(44, 0.05), (8, 0.05), (59, 0.1)])
def test_unseen_people_are_called_copies_as_often_as_it_says(num: int, asked: float) -> None:
    """Of uniform likeness the share of others above a threshold is 1 - threshold; its mean is the stated rate."""
    random = torch.Generator().manual_seed(num)
    found = [Threshold.of(torch.rand(num, generator=random), [""] * num, asked) for _ in range(200)]
    rates = np.array([1 - threshold.value for threshold in found])
    assert found[0].rate <= max(asked, 1 / (num + 1)) + 1e-9
    assert rates.mean() == pytest.approx(found[0].rate, abs=4 * rates.std() / 200**0.5)
    low, high = found[0].ci95
    assert ((rates > low) & (rates < high)).mean() == pytest.approx(0.95, abs=0.06)


def test_people_count_once_however_many_images_they_have() -> None:
    likeness = torch.rand(30, generator=torch.Generator().manual_seed(0))
    whose = [str(i) for i in range(30)]
    once = Threshold.of(likeness, whose, 0.1)
    again = torch.cat([likeness, likeness[-1:].repeat(50)])
    assert Threshold.of(again, [*whose, *whose[-1:] * 50], 0.1) == once


def test_chance_is_the_false_alarm_rate_of_one_image_and_certain_for_none() -> None:
    threshold = Threshold.of(torch.rand(44), [""] * 44, 0.05)
    assert threshold.chance(1, 1) == pytest.approx(threshold.rate)
    assert threshold.chance(0, 9) == 1
    assert threshold.chance(9, 9) < 1e-4
    assert share(3, 3)["ci95"] == pytest.approx([0.025 ** (1 / 3), 1])


def test_the_nearest_is_that_of_all_products_over_all_views() -> None:
    random = torch.Generator().manual_seed(0)
    views, training = [torch.randn(5000, 4, generator=random) for _ in range(2)], torch.randn(7, 4, generator=random)
    products = torch.stack([view @ training.T for view in views]).amax(0)
    found = nearest(views, training / 100)
    torch.testing.assert_close(found.likeness, products.amax(1) / 100)
    assert torch.equal(found.index, products.argmax(1))


def test_people_who_are_leaked() -> None:
    found = Nearest(torch.tensor([0, 1, 2, 2]), torch.tensor([0.9, 0.9, 0.9, 0.1]))
    assert persons(found, 0.5, ["a", "a", "", "b"]) == {"a", "image 2"}
    assert mean_leaked(found, 0.5, ["a", "a", "", "b"], 4) == 2
    assert 0.5 < mean_leaked(found, 0.5, ["a", "a", "", "b"], 1) < 1  # three images of four hit somebody


def test_ranks_are_those_of_mann_and_whitney() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(num, generator=random).round(decimals=1) for num in (30, 50))
    statistic = stats.mannwhitneyu(a, b).statistic
    assert z_of_ranks(a, b) == pytest.approx((statistic - 30 * 50 / 2) / np.sqrt(30 * 50 * 81 / 12))
    assert z_of_ranks(a, b) == pytest.approx(-z_of_ranks(b, a))


def test_c_t_is_low_for_copies_near_0_for_unseen_people_and_high_for_others() -> None:
    random = torch.Generator().manual_seed(0)
    training = torch.randn(300, 2, generator=random)
    index = torch.randint(300, (400,), generator=random)
    likeness = torch.rand(400, generator=random)
    unseen = Nearest(index[:200], likeness[:200])
    for shift, low, high in ((0.5, -20, -5), (0.0, -3, 3), (-0.5, 5, 20)):
        found = data_copying(Nearest(index[200:], likeness[200:] + shift), unseen, training)
        assert low < found.value < high
        assert found.cells == 3


# Representations.


def test_images_are_turned_and_moved_as_said() -> None:
    square, images = people(3, 0, (24, 24)), people(3, 1)
    torch.testing.assert_close(moved(square, torch.full((3,), 90.0)), square.rot90(-1, (2, 3)), atol=1e-4, rtol=0)
    there = moved(images, torch.full((3,), 8.0))
    back = moved(there, torch.full((3,), -8.0))
    assert (back - images).abs().mean() < (there - images).abs().mean() / 2
    shifted = moved(images, torch.zeros(3), shift=torch.tensor([[1 / 32, 2 / 24]]).expand(3, 2))
    torch.testing.assert_close(shifted[:, :, :-1, :-2], images[:, :, 1:, 2:], atol=1e-4, rtol=0)
    volume = people(2, 2, (12, 12, 8))
    turned_about_z = moved(volume, torch.full((2,), 90.0))
    torch.testing.assert_close(turned_about_z, volume.rot90(-1, (2, 3)), atol=1e-4, rtol=0)
    assert len(list(turned(volume))) == 12
    torch.testing.assert_close(
        with_gamma(with_gamma(images, torch.full((3,), 2.0)), torch.full((3,), 0.5)), images, atol=1e-3, rtol=0
    )


def test_voxels_know_no_brightness_and_contrast_and_are_alike_by_pearson() -> None:
    images = people(5, 0)
    features = voxels(images)
    torch.testing.assert_close(voxels(images * 0.4 + 0.2), features, atol=1e-4, rtol=0)
    torch.testing.assert_close(features @ features.T, torch.corrcoef(features), atol=1e-4, rtol=0)
    assert (
        coarse(torch.zeros(1, 1, 128, 128, 64)).shape == (1, 1, 25, 25, 12)
        or coarse(torch.zeros(1, 1, 128, 128, 64))[0].numel() <= 4096
    )
    assert coarse(images) is images


def test_what_is_planted_is_altered_by_the_image_and_its_seed_alone() -> None:
    images = people(4, 0)
    together = planted(images, [3, 5, 8, 9])
    for name, copies in planted(images[2:3], [8]).items():
        torch.testing.assert_close(copies, together[name][2:3], atol=1e-4, rtol=0)
    assert torch.equal(together["verbatim"], images)
    assert torch.equal(together["flipped"].flip(2), images)


# The audit.


def test_planted_copies_are_found_and_unseen_people_are_not(data: ToyData, tmp_path: Path) -> None:
    others = people(400, 77)
    report, pairs = audit(Images.of(others), data, FACTS)  # type: ignore[arg-type]
    for name, of in report["copies"].items():
        low, high = of["false_alarms"]["ci95"]
        assert low <= of["copied"]["value"] <= high, name
        assert of["copied"]["chance"] > 0.01
        assert abs(of["c_t"]["value"]) < 3
        assert report["self_test"]["verbatim"][name]["value"] >= 0.99
    for name, of in report["self_test"].items():
        assert of["embedding"]["value"] >= 0.95, name
    assert "No more copies found" in report["verdict"]
    mixed = torch.cat([others[:45], planted(data.of["train"][:5], range(5))["all"]])
    report, pairs = audit(Images.of(mixed), data, FACTS)  # type: ignore[arg-type]
    of = report["copies"]["embedding"]
    assert of["copied"]["hits"] >= 5
    assert of["leaked"]["hits"] >= 5
    assert of["leaked_of_equal_pools"]["samples"] > of["leaked_of_equal_pools"]["unseen"]
    assert report["verdict"].startswith("Copies found")
    assert {row["sample"] for row in report["nearest"][:5]} == {str(i) for i in range(45, 50)}
    write_audit(tmp_path, report, pairs)
    assert all((tmp_path / name).is_file() for name in ("report.json", "report.md", "pairs.png", "likeness.png"))
    write_audit(tmp_path, report)
    assert not (tmp_path / "pairs.png").exists()


def test_training_images_are_read_once_and_kept_by_their_content(tmp_path: Path) -> None:
    data = ToyData(tmp_path, {"train": 20, "val": 4, "test": 8})
    first = Reference.of(data)  # type: ignore[arg-type]
    data.num_read = 0
    again = Reference.of(data)  # type: ignore[arg-type]
    assert torch.equal(first.embedded, again.embedded)
    assert data.num_read <= 1  # an image tells how many are read at a time
    kept = next((tmp_path / "audit").glob("*.pt"))
    kept.write_bytes(b"broken")
    torch.testing.assert_close(Reference.of(data).embedded, first.embedded)  # type: ignore[arg-type]
    data.digest = "1" * 64
    Reference.of(data)  # type: ignore[arg-type]
    assert len(list((tmp_path / "audit").glob("*.pt"))) == 2


def test_all_slices_that_training_sees_are_compared_with(data: ToyData) -> None:
    class Sliced(ToyData):
        def seen(self, split: str) -> list[tuple[str, int]]:
            return [(key, number) for key, _ in super().seen(split) for number in range(3)]

        def stored(self, split: str, first: int = 0) -> Any:
            for batch in super().stored(split, first):
                yield Batch(torch.cat([batch.image + k / 10 for k in range(3)]), batch.key * 3, batch.affine)

    images = training_images(Sliced(data.cache, {"train": 10, "val": 4, "test": 8}))  # type: ignore[arg-type]
    assert len(images) == 30
    assert images.people[4] == "train1"
    torch.testing.assert_close(images.read([7, 4]), torch.stack([images.all()[7], images.all()[4]]))
    torch.testing.assert_close(images.read([4]), people(10, 0)[1:2] + 0.1)


def test_too_few_people_are_refused(tmp_path: Path) -> None:
    data = ToyData(tmp_path, {"train": 20, "val": 3, "test": 4})
    with pytest.raises(InputError, match="20 training people and 7 unseen ones; an audit needs 8 of each"):
        audit(Images.of(people(3, 9)), data, FACTS)  # type: ignore[arg-type]


# Membership.


def test_true_positives_are_counted_where_1_percent_of_unseen_people_are_taken_for_members() -> None:
    unseen = np.arange(200.0)  # 1 % are 0 and 1
    assert true_positives(np.array([-1.0, 1.9, 2.0, 50.0]), unseen) == 0.5
    assert true_positives(np.array([-1.0, 0.0]), np.arange(50.0)) == 0.5  # 1 % of 50 is nobody
    found = separated(torch.arange(20.0).double(), torch.arange(20.0).double() + 100)
    assert found["auc"]["value"] == found["tpr"]["value"] == 1


class Memory(nn.Module):
    """The denoiser that knows its training images and nothing else: E[x | x_t], exactly, of a model fitted for ever."""

    def __init__(self, model: DDPM, images: Tensor) -> None:
        super().__init__()
        self.process, self.images = model.denoiser.process, images

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = self.process.coefficients(t, x_t)
        apart = (x_t[:, None] - alpha[:, None] * self.images).flatten(2).square().sum(2)
        weights = (-apart / (2 * sigma.flatten(1) ** 2)).softmax(1)
        return torch.einsum("bn,n...->b...", weights, self.images)


def remembering(images: Tensor) -> DDPM:
    """A model that has memorised some images."""
    network = UNet(2, channels=(8,), attention=(False,), num_res_blocks=1)
    model = DDPM(network, parametrisation="x", sampler=DDIM(3))
    model.denoiser.network = Memory(model, images)
    model.spec = DataSpec(1, tuple(images.shape[2:]), (1.0, 1.0))
    return model.eval()


@pytest.mark.parametrize("by_loss", [False, True], ids=["surprise", "loss"])
def test_an_over_fitted_model_is_told_and_one_of_other_people_is_not(
    by_loss: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ToyData(tmp_path, {"train": 24, "val": 8, "test": 24}, (16, 16))
    if by_loss:
        monkeypatch.setattr(DDPM, "why_no_surprise", lambda self: "has none")
        monkeypatch.setattr("lit_medgen.evaluation.membership.NUM_TIMES", 4)
    fitted = membership(remembering(data.of["train"]), data, 16)  # type: ignore[arg-type]
    assert fitted["auc"]["value"] >= 0.9
    assert fitted["tpr"]["value"] >= 0.9
    assert fitted["people"] == [24, 32]
    fresh = membership(remembering(people(24, 50, (16, 16))), data, 16)  # type: ignore[arg-type]
    low, high = fresh["auc"]["ci95"]
    assert low <= 0.5 <= high


# The verb, and the audit of `sample`.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny DDPM of 2D images of 60 people after two steps, with its data and store."""
    folder = tmp_path_factory.mktemp("audited")
    for number, image in enumerate(people(60, 3, (16, 16))):
        (folder / "png").mkdir(exist_ok=True)
        write_png(folder / "png" / f"{number:02d}.png", ((image[0] + 1) / 2).numpy())
    data = {
        "class_path": "data_modules.FolderDataModule",
        "init_args": {
            "root": str(folder / "png"),
            "pattern": "*.png",
            "preprocessing": {"size": [16, 16], "field_of_view_mm": [16.0, 16.0], "intensity": "window"},
            "store_dir": str(folder / "store"),
            "fractions": [0.6, 0.1, 0.3],
            "batch_size": 4,
            "num_jobs": 1,
        },
    }
    network = {"channels": [8, 8], "attention": [False, False], "head_channels": 8}
    model = {"init_args": {"network": {"init_args": network}, "sampler": {"init_args": {"num_steps": 2}}}}
    trainer = yaml.safe_load((ROOT / "tests/tiny/any.yaml").read_text())["trainer"]
    base = yaml.safe_load((ROOT / "configs/ddpm_2d.yaml").read_text()) | {"data": data}
    for name, config in (("base", base), ("tiny", {"model": model, "trainer": trainer})):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    configs = [word for name in ("base", "tiny") for word in ("--config", str(folder / f"{name}.yaml"))]
    assert main(["fit", *configs, f"--trainer.default_root_dir={folder}"]) == 0
    return folder


def on(run: Path, verb: str, *words: str) -> int:
    return main([verb, "--ckpt_path", str(run / "ddpm_2d/checkpoints/last.ckpt"), *words])


def said(folder: Path) -> str:
    """What the manifest says of the audit."""
    with (folder / "manifest.csv").open(newline="") as file:
        (found,) = {row["audit"] for row in csv.DictReader(file)}
    return found


def test_every_sample_run_ends_with_an_audit_or_says_why_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples"
    assert on(run, "sample", "--num=3", f"--out={out}") == 0
    assert said(out) == "audit/report.json"
    report = json.loads((out / "audit/report.json").read_text())
    assert report["num_samples"] == 3
    assert not (out / "audit/pairs.png").exists()  # it would show training people among what is given away
    assert "No more copies found" in capsys.readouterr().out
    assert on(run, "sample", "--num=3", f"--out={out}", "--audit=false") == 0
    assert said(out) == "none: --audit false"
    assert not (out / "audit/report.json").exists()
    (run / "store").rename(run / "elsewhere")
    try:
        assert on(run, "sample", "--num=3", f"--out={out}") == 0
    finally:
        (run / "elsewhere").rename(run / "store")
    assert said(out) == "none: the prepared data is not there"
    assert "no audit of copies was made: " in capsys.readouterr().out


def test_no_audit_against_images_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = DataSpec(channels=1, size=(8, 8), spacing_mm=(1.0, 1.0))
    data: Any = SimpleNamespace(address=SimpleNamespace(folder=tmp_path), spec=spec)
    assert SampleAudit(data, replace(spec, channels=2), {})(tmp_path) == NOT_POSSIBLE
    assert (
        "no audit of copies was made: the checkpoint: its images have channels 2, but those" in capsys.readouterr().out
    )
    assert not (tmp_path / "audit").exists()


def test_copies_in_any_folder_are_found(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "png", tmp_path / "copies")  # of all people, of whom 37 were trained on
    out = tmp_path / "audit"
    assert on(run, "audit", f"--samples={tmp_path / 'copies'}", f"--out={out}", "--batch_size=60") == 0
    report = json.loads((out / "report.json").read_text())
    assert report["people"] == {"train": 37, "unseen": 23}
    for of in report["copies"].values():
        assert of["leaked"]["value"] == 1
        assert of["as_planted"]["hits"] == 37
        assert 37 <= of["copied"]["hits"] <= 37 + of["false_alarms"]["rank"]  # the folder has the unseen people too
    assert report["membership"]["people"] == [37, 23]
    assert "Copies found" in capsys.readouterr().out
    assert (out / "pairs.png").is_file()
    assert on(run, "audit", "--samples=nowhere", f"--out={out}") == 2
    assert "--samples: no folder 'nowhere'" in one_line(capsys)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"size": (8, 16)}, "its images have size (8, 16)"),
        ({"people": {"train": "others"}, "people_sums": {}}, "trained on another split of people"),
    ],
)
def test_samples_of_another_model_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], told: str
) -> None:
    spec = read_spec(run / "ddpm_2d/checkpoints/last.ckpt")
    assert spec is not None
    (tmp_path / "spec.json").write_text(json.dumps(replace(spec, **changed).plain()))
    assert on(run, "audit", f"--samples={tmp_path}", f"--out={tmp_path / 'audit'}") == 2
    line = one_line(capsys)
    assert f"--samples {tmp_path}: " in line
    assert told in line
    assert not (tmp_path / "audit").exists()


# At size.


@pytest.mark.slow
def test_1000_samples_against_10000_training_images_take_less_than_a_minute() -> None:
    random = torch.Generator().manual_seed(0)
    small = people(200, 0, (64, 64))
    features = voxels(small)
    embedding = learn(small)
    many = torch.nn.functional.normalize(torch.randn(10000, features.shape[1], generator=random))
    reference = Reference(Images.of(small), many, embedding, embedding(many))
    start = time.process_time()
    reference.nearest(Images.of(people(1000, 1, (64, 64))))
    assert time.process_time() - start < 60


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("kind", ["brains", "radiographs"])
def test_real_copies_are_found_and_real_unseen_people_are_not(kind: str, tmp_path: Path, shared_data: Path) -> None:
    """Half of the unseen people give the thresholds, the other half are taken for samples."""
    data = RealData(tmp_path, brains(shared_data) if kind == "brains" else radiographs(shared_data))
    report, _ = audit(data.of["others"], data, FACTS)  # type: ignore[arg-type]
    for name, of in report["copies"].items():
        assert report["self_test"]["verbatim"][name]["value"] >= 0.99
        assert of["copied"]["ci95"][0] <= of["false_alarms"]["ci95"][1], name
        assert of["copied"]["chance"] > 0.01
    for name, of in report["self_test"].items():
        assert of["embedding"]["value"] >= 0.95, name


def brains(folder: Path) -> tuple[Tensor, list[str]]:
    """138 brains of IXI at 4 mm, and who they are."""
    paths = sorted((folder / "brain/ixi/brain").glob("*.nii.gz"))
    volumes = [torch.from_numpy(read_nifti(path)[0].astype(np.float32)) for path in paths]
    images = torch.nn.functional.avg_pool3d(torch.stack(volumes)[:, None] / 127.5 - 1, 2)
    return images, [path.name for path in paths]


def radiographs(folder: Path) -> tuple[Tensor, list[str]]:
    """746 radiographs of ChestX-ray14 at 64 x 64, and whose they are."""
    content = np.load(folder / "cxr/nih64.npz")
    return torch.from_numpy(content["images"])[:, None].float() / 127.5 - 1, [
        str(name).partition("_")[0] for name in content["names"]
    ]


class RealData(ToyData):
    """Two thirds of the people are those of training, a sixth is unseen, a sixth are others."""

    def __init__(self, cache: Path, found: tuple[Tensor, list[str]]) -> None:
        images, whose = found
        self.cache, self.spec = cache, DataSpec(1, tuple(images.shape[2:]), (1.0,) * (images.ndim - 2))
        everybody = sorted(set(whose))
        order = np.random.default_rng(0).permutation(len(everybody))
        part = {
            everybody[k]: ("train", "train", "train", "train", "test", "others")[i % 6] for i, k in enumerate(order)
        }
        self.whose = {
            split: [k for k, who in enumerate(whose) if part[who] == split] for split in ("train", "test", "others")
        }
        self.of: dict[str, Any] = {
            split: Images.of(images[some], [whose[k] for k in some]) for split, some in self.whose.items()
        }
        self.of["val"] = Images.of(images[:0])

    def images(self, split: str, one_per_person: bool = False, limit: int | None = None) -> Images:
        found: Images = self.of[split]
        return found

    def people(self, split: str) -> dict[str, str]:
        return dict(zip(self.of[split].keys, self.of[split].people, strict=True))


# Words.


def test_no_text_of_the_audit_promises_what_it_cannot() -> None:
    """Neither a sample nor a model is ever called so: an audit that finds nothing proves nothing."""
    files = [
        *(ROOT / "lit_medgen").rglob("*audit*.py"),
        ROOT / "lit_medgen/evaluation/copies.py",
        ROOT / "docs/audit.md",
    ]
    assert len(files) > 6
    for path in files:
        assert not re.search(r"\bprivate\b|\banonym", path.read_text(), flags=re.IGNORECASE), path
