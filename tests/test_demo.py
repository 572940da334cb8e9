"""The demo at its full size: it learns, and few steps of a good sampler stand for many of the paper's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from joblib import Parallel, delayed
from jsonargparse import ArgumentParser
from test_readme import blocks, commands
from tiny_run import ROOT, frozen_parts

from data_modules.base import MedicalDataModule
from lit_medgen.batch import Condition, Images
from lit_medgen.checkpoints import read_checkpoint
from lit_medgen.diffusion import Ancestral, DPMSolverPP2M, Sampler
from lit_medgen.evaluation.report import Maker, evaluate
from lit_medgen.loading import build_method, config_of, load
from lit_medgen.methods import CDPM
from lit_medgen.sampling import like_people, samples

pytestmark = pytest.mark.slow
SEEDS = range(32)
NUM_CORES = len(os.sched_getaffinity(0))

SCORES = [
    "ms_ssim",
    "ms_ssim_gap",
    "ssim",
    "mmd_linear_biased",
    "mmd_rbf_unbiased",
    "sharpness",
    "mode_spread",
    "nearest_training",
    "ventricle_spread",
    "seam_ratio",
    "frechet_sagittal",
    "frechet_coronal",
    "frechet_axial",
    "kernel_distance",
    "precision",
    "recall",
    "density",
    "coverage",
]
MISSED = {
    0.0: {"mode_spread", "seam_ratio", "density", "ventricle_spread", "recall"},
    1.0: {"ventricle_spread", "recall"},
}
"""eta of the sampler -> scores for which few steps were measured not to stand for many (docs/notes/few_steps.md).

Recall was 1 before and after that training, so that no difference is small beside its change. Either eta missed the
spread of ventricles on one machine and met it on another.
"""
NOT_YET = pytest.mark.xfail(reason="missed as measured: docs/notes/few_steps.md", raises=AssertionError, strict=False)


NEEDED = {"asking_for_images": ("README", "code_maps"), "commands": ("README", "code_maps")}
"""Page -> pages whose commands make what its own read."""


class Pages:
    """A folder in which the demo commands of pages are run, as printed, when a test asks for them; each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: set[tuple[str, ...]] = set()
        (folder / "configs").symlink_to(ROOT / "configs")
        (table,) = blocks(ROOT / "docs" / "asking_for_images.md", "csv")
        (folder / "requests.csv").write_text(table)

    def after(self, name: str) -> Path:
        """What lies in `demo` once the commands of a page, and of those it needs, were run."""
        for needed in NEEDED.get(name, ()):
            self.after(needed)
        for words in map(tuple, commands(ROOT / f"{name}.md" if name == "README" else ROOT / "docs" / f"{name}.md")):
            own = {"mine.yaml", "my_slices", "demo/edited_maps"}  # the reader's
            if words not in self.ran and "demo" in " ".join(words) and not own.intersection(words):
                run(self.folder, list(words))
            self.ran.add(words)
        return self.folder / "demo"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def demo(pages: Pages) -> Path:
    """What the README's commands leave."""
    return pages.after("README")


@pytest.fixture(scope="module")
def plain(pages: Pages, demo: Path) -> Path:
    """Checkpoints of the demo's model without a factor prior, by the command of docs/notes/few_steps.md."""
    (words,) = (words for words in commands(ROOT / "docs" / "notes" / "few_steps.md") if "cdpm_plain" in words)
    run(pages.folder, words)
    return demo / "cdpm_plain" / "checkpoints"


def run(folder: Path, words: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(NUM_CORES)}
    subprocess.run([sys.executable, "-m", "lit_medgen", *words], cwd=folder, env=environment, check=True)


def data_of(demo: Path, checkpoint: Path) -> MedicalDataModule:
    section = config_of(checkpoint)["data"]
    for name in {"root", "withdrawals", "store_dir"} & section["init_args"].keys():  # relative to where the demo ran
        section["init_args"][name] = str(demo.parent / section["init_args"][name])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MedicalDataModule, "data")
    data: MedicalDataModule = parser.instantiate(parser.parse_object({"data": section})).data
    data.setup("test")
    return data


def sample(model: CDPM, seeds: range) -> torch.Tensor:
    torch.set_num_threads(1)
    with torch.autocast("cpu", torch.bfloat16):
        return model.sample(Condition(), seeds).float()


def scores(model: CDPM, data: MedicalDataModule, out: Path, sampler: Sampler) -> dict[str, float]:
    """Name -> value for the samples of SEEDS."""
    model.spec = data.spec
    model.sampler = sampler
    parts = [delayed(sample)(model, SEEDS[i : i + 4]) for i in range(0, len(SEEDS), 4)]
    samples = torch.cat(Parallel(n_jobs=NUM_CORES)(parts))
    report = evaluate(Images.of(samples), data, out, Maker(seams=model.seams()))
    return {name: row["value"] for name, row in report["metrics"].items()}


LEARNED = ("code_maps", "latent_diffusion", "lsdm", "vdm", "baselines")
JUDGED_BY = {"ddpm": "mmd_linear"}
"""Name of a demo -> how the scores begin that it is judged by, unless by Fréchet distances."""
MIN_GAIN = {"hagan": 1.5}  # one head in many, as docs/baselines.md says
"""Name of a demo -> how many times nearer to real images it is than untrained, 2 unless it stands here."""
REPORTED = [
    (page, name)
    for page in LEARNED
    for name in re.findall(r"--out demo/(\w+)_report", (ROOT / "docs" / f"{page}.md").read_text())
]


@pytest.mark.parametrize(("page", "name"), REPORTED)
def test_demo_of_each_stage_beats_its_untrained_copy(pages: Pages, tmp_path: Path, page: str, name: str) -> None:
    """By the Fréchet distance of samples (of reconstructions, for a first stage), in volumes of all three views.

    Methods with a bound of the likelihood by that, in bits, and DDPM in volumes by the distance of mean voxels:
    untrained ones in pixels sample pure noise, and features that were learned from phantoms hardly see noise.
    """
    demo = pages.after(page)
    checkpoint = demo / f"{name}_demo" / "checkpoints" / "last.ckpt"
    report = json.loads((demo / f"{name}_report" / "report.json").read_text())
    data = data_of(demo, checkpoint)
    trained, content = load(checkpoint), read_checkpoint(checkpoint)
    torch.manual_seed(0)
    fresh: Any = build_method(config_of(checkpoint)).eval()
    fresh.on_load_checkpoint(content)  # the first stage's network, the maps to start from, the spec
    for part in frozen_parts(f"configs/{name}.yaml"):
        getattr(fresh, part).load_state_dict(getattr(trained, part).state_dict())
    if hasattr(trained, "scale"):  # measured, not learned
        fresh.scale = trained.scale
    if "bits_per_dimension" in report["own"]:
        untrained_bits = fresh.scores(data)["bits_per_dimension"].value
        assert report["own"]["bits_per_dimension"]["value"] < untrained_bits / 2
        return
    images = torch.cat(list(samples(fresh, like_people(fresh, data, "test", None), 11)))  # as many as the report is of
    untrained = evaluate(Images.of(images), data, tmp_path)["metrics"]
    for score in (each for each in untrained if each.startswith(JUDGED_BY.get(name, "frechet_"))):
        assert report["metrics"][score]["value"] < untrained[score]["value"] / MIN_GAIN.get(name, 2)


@pytest.mark.parametrize("page", NEEDED)
def test_commands_of_other_pages_run(pages: Pages, page: str) -> None:
    pages.after(page)


def test_demo_of_controlnet_follows_its_source(pages: Pages) -> None:
    """Untrained it is its base, whose images are those of other people."""
    report = json.loads((pages.after("controlnet") / "controlnet_report" / "report.json").read_text())
    for score in ("psnr", "ssim", "ms_ssim"):
        assert report["pairs"][score]["ci95"][0] > report["pairs"][score]["real_vs_real"]


def test_demo_of_the_upscaler_beats_interpolation_and_keeps_to_its_source(pages: Pages) -> None:
    made = pages.after("upscaler")
    pairs = json.loads((made / "upscaler_report" / "report.json").read_text())["pairs"]
    for simple in pairs["psnr"]["baselines"].values():
        assert pairs["psnr"]["ci95"][0] > simple["value"]
    assert pairs["consistency"]["value"] < pairs["mae"]["value"] < pairs["mae"]["real_vs_real"]
    manifest = (made / "cascade" / "manifest.csv").read_text()
    assert manifest.count("sample_0000000") == 8  # nobody's: their sources are samples


def test_demo_leaves_what_it_prints(demo: Path) -> None:
    report = json.loads((demo / "report" / "report.json").read_text())
    assert report["metrics"]["ms_ssim"]["num_samples"] == report["metrics"]["ms_ssim"]["num_real"]
    assert (demo / "report" / "samples.png").is_file()
    assert len(list((demo / "samples").glob("*.nii.gz"))) == 4
    assert yaml.safe_load((demo / "samples" / "config.yaml").read_text())["name"] == "cdpm_demo"


@pytest.fixture(scope="module")
def against_untrained(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    """Name -> score of the demo's model, and of its untrained copy."""
    last = demo / "cdpm_demo" / "checkpoints" / "last.ckpt"
    data, out = data_of(demo, last), tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    fresh = build_method(config_of(last)).eval()
    fresh.on_load_checkpoint(read_checkpoint(last))  # spec and factor model, but no weights
    trained, untrained = (scores(model, data, out, model.sampler) for model in (load(last), fresh))  # type: ignore[arg-type]
    return {name: (trained[name], untrained[name]) for name in trained}


def test_demo_is_sharper_than_its_untrained_copy(against_untrained: dict[str, tuple[float, float]]) -> None:
    trained, untrained = against_untrained["sharpness"]
    assert abs(trained - 1) < abs(untrained - 1) / 2


@NOT_YET  # the untrained copy has shape and mean, which this asks for, from its prior
def test_demo_is_as_varied_as_people_more_than_its_untrained_copy(
    against_untrained: dict[str, tuple[float, float]],
) -> None:
    trained, untrained = against_untrained["ms_ssim_gap"]
    assert trained < untrained


@pytest.fixture(scope="module")
def many(demo: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Scores of 250 ancestral steps.

    Of a model without a factor prior: with one, training changed most scores by little (docs/notes/few_steps.md).
    """
    last, out = plain / "last.ckpt", tmp_path_factory.mktemp("many")
    return scores(load(last), data_of(demo, last), out, Ancestral(250))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=MISSED)
def few(
    request: pytest.FixtureRequest, demo: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[float, dict[str, float], dict[str, float]]:
    """Eta, and the scores of 20 steps on the last checkpoint and on that after 10 % of the training."""
    last, tenth, out = plain / "last.ckpt", plain / "step_0000180.ckpt", tmp_path_factory.mktemp("few")
    data, sampler = data_of(demo, last), DPMSolverPP2M(20, eta=request.param)
    of_last, of_tenth = (
        scores(load(path), data, out / path.stem, sampler)  # type: ignore[arg-type]
        for path in (last, tenth)
    )
    return request.param, of_last, of_tenth


@pytest.mark.parametrize("name", SCORES)
def test_twenty_steps_stand_for_many(
    few: tuple[float, dict[str, float], dict[str, float]],
    many: dict[str, float],
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    """DPM-Solver++ differs from 250 ancestral steps by less than a quarter of what 90 % of the training changed."""
    eta, last, tenth = few
    if name in MISSED[eta]:
        request.applymarker(NOT_YET)
    print(eta, name, last[name], many[name], tenth[name])
    assert abs(last[name] - many[name]) < abs(last[name] - tenth[name]) / 4
