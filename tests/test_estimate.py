"""Estimates: what is counted on fake tensors is what real tensors take, and plans fit."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ROOT
from torch import nn

from lit_medgen.__main__ import main
from lit_medgen.errors import InputError
from lit_medgen.estimate.command import bytes_of, in_words, parts_given
from lit_medgen.estimate.configs import read, resolved, training_of
from lit_medgen.estimate.costs import Costs, Estimate, estimated, fake_tensors, sample_costs, step_costs
from lit_medgen.estimate.counting import Counting, as_on_gpu
from lit_medgen.estimate.experiments import Experiment, PartConfigs, files_of_header, run_of
from lit_medgen.estimate.gpus import GPUS
from lit_medgen.estimate.header import LABEL, header_line
from lit_medgen.estimate.plans import CONTEXT, FRAGMENTED, fitting, needed
from lit_medgen.estimate.rehearsal import Rehearsal, Training
from lit_medgen.estimate.settings import changed, checkpointing, flags, value_of

PARTS = PartConfigs({}, [ROOT / "configs"], read)
FILES = ("configs/ddpm_2d.yaml", "tests/tiny/any.yaml", "tests/tiny/ddpm_2d.yaml")
PLAIN = Training("32-true", 1, averaged=True)


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    """A tiny experiment of diffusion in 2D, two images a step."""
    return changed(read([ROOT / name for name in FILES]), {"data.init_args.batch_size": 2})


def test_products_and_convolutions_are_counted_by_their_closed_forms() -> None:
    with fake_tensors(), Counting() as counting:
        nn.Linear(5, 7, bias=False)(torch.zeros(3, 5))
        assert counting.flops == 2 * 3 * 5 * 7
        nn.Conv3d(2, 4, 3, padding=1)(torch.zeros(1, 2, 8, 8, 8))
        assert counting.flops == 2 * 3 * 5 * 7 + 2 * 4 * 2 * 27 * 8**3
        counting.restart()
        q = torch.zeros(2, 4, 16, 8)
        nn.functional.scaled_dot_product_attention(q, q, q)
        assert counting.flops == 2 * 2 * (2 * 4 * 16 * 16 * 8)


def test_bytes_are_those_of_storages_while_they_are_there() -> None:
    with fake_tensors(), Counting() as counting:
        x = torch.zeros(100)
        assert counting.num_bytes == 400
        y = x.view(10, 10)[2:]  # no storage of its own
        z = x.double()
        assert (counting.num_bytes, counting.peak) == (1200, 1200)
        del z
        assert (counting.num_bytes, counting.peak) == (400, 1200)
        del x
        assert counting.num_bytes == 400
        del y
        assert counting.num_bytes == 0


def test_copies_of_fake_tensors_share_their_mode() -> None:
    with fake_tensors():
        linear = nn.Linear(2, 3)
        copied = deepcopy(linear)
        assert copied.weight is not linear.weight
        assert copied.weight.fake_mode is linear.weight.fake_mode  # type: ignore[attr-defined]


def test_a_fake_step_counts_as_a_real_one(tiny: dict[str, Any]) -> None:
    counted = []
    for where in (fake_tensors, torch.enable_grad):
        with where():
            experiment = Experiment.of(tiny, PARTS)
            rehearsal = Rehearsal.of(experiment.model, PLAIN)
            step = step_costs(rehearsal, experiment.batch)
            counted.append((step, sample_costs(rehearsal, experiment.model, experiment.spec)))
    fake, real = counted
    assert fake[0].flops == real[0].flops
    assert fake[0].peak == pytest.approx(real[0].peak, rel=0.02)  # libraries keep scratch tensors of their own
    assert fake[1].flops == real[1].flops


def test_parameters_are_those_of_the_model(tiny: dict[str, Any]) -> None:
    told = estimated(tiny, PARTS, PLAIN, samples=False)
    assert told.trained == sum(each.numel() for each in Experiment.of(tiny, PARTS).model.parameters())
    assert told.frozen == 0


def test_memory_grows_evenly_with_the_batch_and_falls_with_checkpointing(tiny: dict[str, Any]) -> None:
    def of(**changes: Any) -> Costs:
        keys = {"batch": "data.init_args.batch_size"}
        return estimated(
            changed(tiny, {keys[name]: value for name, value in changes.items()}), PARTS, PLAIN, samples=False
        ).step

    one, two, three = (of(batch=num) for num in (1, 2, 3))
    assert three.peak - two.peak == pytest.approx(two.peak - one.peak, rel=0.01)
    assert three.flops - two.flops == pytest.approx(two.flops - one.flops, rel=1e-6)
    on = estimated(changed(tiny, checkpointing(tiny, True)), PARTS, PLAIN, samples=False).step
    assert on.flops > two.flops


def test_accumulated_batches_cost_as_often(tiny: dict[str, Any]) -> None:
    once, twice = (estimated(tiny, PARTS, Training("32-true", num), samples=False).step for num in (1, 2))
    assert twice.flops == 2 * once.flops
    assert twice.peak >= once.peak  # gradients stay from batch to batch


def test_a_gpu_normalises_in_float32_under_autocast() -> None:
    norm, x = nn.GroupNorm(1, 2), torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)
    original = nn.functional.group_norm
    for on_gpu, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        with as_on_gpu(on_gpu), torch.autocast("cpu", torch.bfloat16):
            assert norm(x).dtype is dtype
    assert nn.functional.group_norm is original
    with as_on_gpu():
        assert x.softmax(1).dtype is torch.bfloat16  # without autocast nothing is cast


def of_peak(peak: float) -> Estimate:
    return Estimate(1, 0, Costs(1, int(peak)), None)


def per_image(config: dict[str, Any]) -> Estimate:
    """A step that holds 10 GB for each image, a fifth of it with checkpointing."""
    on = value_of(config, "model.init_args.network.init_args.gradient_checkpointing")
    return of_peak((0.2 if on else 1) * 1e10 * value_of(config, "data.init_args.batch_size"))


CONFIG: dict[str, Any] = {
    "model": {"init_args": {"network": {"init_args": {"gradient_checkpointing": False}}, "patch": None}},
    "data": {"init_args": {"batch_size": 6}},
    "trainer": {"accumulate_grad_batches": 2},
}


@pytest.mark.parametrize(
    ("memory", "accumulates", "flag"),
    [
        (80e9, True, ""),
        (20e9, True, "--model.init_args.network.init_args.gradient_checkpointing=true"),
        (
            8e9,
            True,
            "--model.init_args.network.init_args.gradient_checkpointing=true --data.init_args.batch_size=3 "
            "--trainer.accumulate_grad_batches=4",
        ),
        (
            4e9,
            False,
            "--model.init_args.network.init_args.gradient_checkpointing=true --data.init_args.batch_size=1",
        ),
    ],
)
def test_a_plan_changes_no_more_than_it_must(memory: float, accumulates: bool, flag: str) -> None:
    plan = fitting(CONFIG, memory, per_image, accumulates)
    assert flags(plan.changes) == flag
    assert needed(plan.peak) <= memory
    assert needed(plan.peak) == FRAGMENTED * plan.peak + CONTEXT
    if accumulates:  # as many images in a step
        made = changed(CONFIG, plan.changes)
        assert made["data"]["init_args"]["batch_size"] * made["trainer"]["accumulate_grad_batches"] == 12


def test_patches_are_halved_where_nothing_else_is_left() -> None:
    config = changed(CONFIG, {"model.init_args.patch": 64, "data.init_args.batch_size": 1})
    plan = fitting(config, 3e9, lambda made: of_peak(1e4 * value_of(made, "model.init_args.patch") ** 3), True)
    assert plan.changes["model.init_args.patch"] == 32
    with pytest.raises(InputError, match=r"--fit: no batch, checkpointing or patch .* fits into 0.9 GiB"):
        fitting(config, 1e9, lambda _: of_peak(1e10), True)


def test_flags_are_read_back_as_they_were_meant(tiny: dict[str, Any]) -> None:
    changes = {**checkpointing(tiny, True), "data.init_args.batch_size": 1, "trainer.accumulate_grad_batches": 2}
    words = [word for name in FILES for word in ("--config", str(ROOT / name))]
    config = resolved([*words, *flags(changes).split()])
    assert {key: value_of(config, key) for key in changes} == changes


def test_configs_of_parts_are_found_by_the_name_of_their_run() -> None:
    text = (ROOT / "configs/demo/vqgan.yaml").read_text()
    assert files_of_header(text) == ["configs/vqgan.yaml", "configs/demo/vqgan.yaml"]
    assert run_of(Path("demo/vqgan_demo/checkpoints/last.ckpt")) == run_of(Path("demo/vqgan_demo")) == "vqgan_demo"


def test_numbers_are_written_and_read() -> None:
    assert [in_words(number).strip() for number in (1.5e18, 2.34567e12, 12, 9.99e8)] == [
        "1.5 E",
        "2.35 T",
        "12",
        "999 M",
    ]
    assert [bytes_of(text) for text in ("24GiB", "80 GB", "1.5", "512MiB")] == [24 * 2**30, 8e10, 1.5 * 2**30, 2**29]
    assert parts_given(["first_stage=a.yaml,b.yaml"]) == {"first_stage": [Path("a.yaml"), Path("b.yaml")]}
    assert GPUS["H100"].hours(3600 * 989e12, share=0.5) == 2


BASES = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def numbers_of(line: str) -> list[float]:
    """Parameters, operations and memory in a line of costs, in order."""
    size = {"": 1.0, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
    found = re.findall(r"(\d[\d,.]*)(?: ([EPTGM])(?=FLOP))?", line.partition("(`estimate`")[0])
    return [float(number.replace(",", "")) * size[prefix] for number, prefix in found]


def check_header(name: str) -> None:
    path = ROOT / "configs" / name
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(LABEL))
    config = read([path])
    training = training_of(config)
    expected = header_line(estimated(config, PARTS, training), training.precision)
    found, wanted = numbers_of(line), numbers_of(expected)
    assert found[0] == wanted[0], expected
    assert found == pytest.approx(wanted, rel=0.05), expected


@pytest.mark.parametrize("name", ["alpha_wgan.yaml", "ddpm_2d.yaml"])
def test_headers_say_what_is_estimated(name: str) -> None:
    check_header(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_all_headers_say_what_is_estimated(name: str) -> None:
    check_header(name)


def run(*words: str, files: tuple[str, ...] = FILES) -> int:
    return main(["estimate", *(word for name in files for word in ("--config", str(ROOT / name))), *words])


def test_the_command_says_what_a_run_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "estimate.json"
    precision = ("--trainer.precision", "bf16-mixed")
    out.parent.mkdir()
    out.write_text(json.dumps({"precision": "32-true", "settings": {}}))  # an earlier estimate is replaced
    assert run("--fit", "24GiB", "--gpus", "[H100, L4]", "--out", str(out), *precision) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = json.loads(out.read_text())["settings"]
    assert settings.keys() == {"bf16-mixed, not checkpointed", "bf16-mixed, checkpointed"}
    assert lines[0] == f"DDPM: {settings['bf16-mixed, checkpointed']['trained']:,} trained parameters"
    assert [line.split()[0] for line in lines if line.endswith(" h")] == ["H100", "L4"]
    assert lines[-1].startswith("fits as it is: ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gpus", "[H100, GTX]"], "--gpus: no card 'GTX' is known; give some of "),
        (["--fit", "much"], "--fit is 'much'; give the memory of a card"),
        (["--share", "2"], "--share is 2.0; give the share"),
        (["--part", "[first_stage]"], "--part is 'first_stage'; give NAME=FILE"),
        (["--part", "[base=configs/ddpm.yaml]"], "--part base: the model has no such part; it has no frozen part."),
        (["--out", "tests"], "--out is 'tests', a folder; give a file, e.g. tests/estimate.json."),
        (["--out", "/dev/stdout"], "--out: '/dev/stdout' is there and is no estimate"),
        (["--out", "README.md"], "--out: 'README.md' is there and is no estimate, so it was not touched; give a new"),
        (["--data.init_args.batch_size", "0"], "error: data.init_args.batch_size is 0; give at least 1."),
        (
            ["--model.init_args.network.init_args.head_channels", "0"],
            "head_channels is 0, which does not divide",
        ),
        (["--out", "README.md/estimate.json"], "--out: 'README.md' cannot be made"),
        (["--model.init_args.sampler.init_args.num_step", "3"], "num_step"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def test_a_frozen_part_without_a_config_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model.init_args.first_stage", "elsewhere/nobody/checkpoints/last.ckpt")
    assert run(*words, files=("configs/ldm_2d.yaml",)) == 2
    line = capsys.readouterr().err
    assert "model.init_args.first_stage: no checkpoint 'elsewhere/nobody/checkpoints/last.ckpt'" in line
    assert "--part first_stage=FILE" in line
