"""TensorBoard and MLflow in the run folder: what `metrics.csv` has, every step once, whatever the run went through."""

from __future__ import annotations

import csv
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import ROOT, TinyRun

from lit_medgen.errors import InputError
from lit_medgen.loggers import LoggerInRunFolder, MlflowRun, TensorBoardRun

pytestmark = pytest.mark.xdist_group("loggers")  # they look at one run that was killed

LOGGERS = {"tensorboard": TensorBoardRun, "mlflow": MlflowRun}
Log = tuple[dict[str, list[tuple[int, float]]], dict[int, np.ndarray]]
"""Name of a number -> its steps and values; step of a sample grid -> the picture, rows columns."""


def read_tensorboard(folder: Path) -> Log:
    """A log as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    log.Reload()
    numbers = {name: [(each.step, each.value) for each in log.Scalars(name)] for name in log.Tags()["scalars"]}
    (folder / "picture.png").unlink(missing_ok=True)
    pictures = {}
    for each in log.Images("samples") if "samples" in log.Tags()["images"] else []:
        (folder / "picture.png").write_bytes(each.encoded_image_string)
        pictures[each.step] = np.asarray(Image.open(folder / "picture.png").convert("L"))
    return numbers, pictures


def read_mlflow(folder: Path) -> Log:
    """A log as MLflow's client gives it."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("lit_medgen").experiment_id])
    assert run.info.status in ("RUNNING", "FINISHED")
    numbers = {}
    for name, latest in run.data.metrics.items():
        history = client.get_metric_history(run.info.run_id, name)
        numbers[name] = sorted((each.step, each.value) for each in history)
        assert numbers[name][-1][1] == latest
    files = (folder / "mlruns" / "artifacts").glob("*/artifacts/images/samples*.png")
    return numbers, {int(file.name.split("+")[2]): np.asarray(Image.open(file).convert("L")) for file in files}


READ = {"tensorboard": read_tensorboard, "mlflow": read_mlflow}


@pytest.fixture(scope="module")
def killed_run(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps that lost its last two, and went on from the first; a log of each kind."""
    pytest.importorskip("tensorboard")
    overlays = [f"configs/with/{name}.yaml" for name in LOGGERS if not missing(name)]
    before = set(ROOT.iterdir())
    run = TinyRun(tmp_path_factory.mktemp("loggers"), phantoms, ("configs/cdpm.yaml", *overlays))
    each_step = ["--trainer.log_every_n_steps=1", "--trainer.val_check_interval=1", "--trainer.max_steps=3"]
    assert run.fit(*each_step) == 0
    folder = run.last.parents[1]
    for file in ("step_0000002.ckpt", "step_0000003.ckpt", "last.ckpt"):
        (folder / "checkpoints" / file).unlink()
    assert run.fit(*each_step, "--ckpt_path=last") == 0
    assert not {path.name for path in set(ROOT.iterdir()) - before} & {"mlruns", "mlartifacts", "mlflow.db", "runs"}
    return folder


def missing(name: str) -> str | None:
    """The first package that a logger needs and this machine lacks."""
    for package in LOGGERS[name].packages:
        try:
            __import__(package)
        except ModuleNotFoundError:
            return package
    return None


@pytest.mark.parametrize("name", LOGGERS)
def test_a_resumed_run_has_every_step_once(name: str, killed_run: Path) -> None:
    if package := missing(name):
        pytest.skip(f"{package} is not installed: the extra {name}")
    numbers, pictures = READ[name](killed_run)
    with (killed_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for column in rows[0].keys() - {"epoch", "step"}:
        wanted = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        assert [step for step, _ in numbers[column]] == [step for step, _ in wanted]
        np.testing.assert_allclose([value for _, value in numbers[column]], [value for _, value in wanted], rtol=1e-6)
    assert [step for step, _ in numbers["train/loss"]] == [0, 1, 2]
    (grid,) = (killed_run / "grids").glob("step_*.png")
    (picture,) = pictures.values()
    np.testing.assert_allclose(picture.astype(float), np.asarray(Image.open(grid).convert("L"), dtype=float), atol=1)


@pytest.mark.parametrize(("name", "step"), [("tensorboard", 0), ("tensorboard", 2), ("tensorboard", 5), ("mlflow", 2)])
def test_rewinding_drops_a_step_and_those_after(name: str, step: int, tmp_path: Path) -> None:
    """As a run does it that starts, is killed, and starts again."""
    if package := missing(name):
        pytest.skip(f"{package} is not installed: the extra {name}")
    for start, value in ((0, 1.0), (step, 2.0)):
        logger: Any = LOGGERS[name]()
        logger.log_into(tmp_path)
        logger.rewind(start)
        for at in range(start, 5):
            logger.log_metrics({"train/loss": value}, at)
            logger.log_image("samples", [np.full((8, 8), 100 * int(value), np.uint8)], at)
        logger.save()
        logger.finalize("success")
    numbers, pictures = READ[name](tmp_path)
    assert numbers["train/loss"] == [(at, 1.0 if at < step else 2.0) for at in range(5)]
    assert {at: int(picture[0, 0]) for at, picture in pictures.items()} == {
        at: 100 if at < step else 200 for at in range(5)
    }


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logger: type[LoggerInRunFolder] = LOGGERS[name]
    monkeypatch.setitem(sys.modules, logger.packages[0], None)
    with pytest.raises(InputError, match=rf'pip install "lit_medgen\[{name}\]"'):
        logger()


def test_a_database_that_a_kill_left_unfinished_is_rewound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MlflowRun, "packages", ())
    (tmp_path / "mlruns").mkdir()
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE metrics (step INTEGER)")
        database.execute("INSERT INTO metrics VALUES (7)")
    logger = MlflowRun()
    logger.log_into(tmp_path)
    logger.rewind(3)
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database:
        assert database.execute("SELECT step FROM metrics").fetchall() == [(7,)]
