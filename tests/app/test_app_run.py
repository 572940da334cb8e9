"""The page of a trained model: the images of `sample`, nothing for or from anybody else, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import nibabel as nib
import numpy as np
import pydicom
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from tiny_run import ROOT, TinyRun, one_line, run_of

import lit_medgen
from lit_medgen.app.desk import Desk, Wishes
from lit_medgen.app.maps import LabelMap, decoded, empty_body, encoded
from lit_medgen.images.label_maps import write_label_map
from lit_medgen.images.png import read_png

PATIENT = "DOE^JANE_19470329"
HOSTS = re.compile(r"https?://([^/\"' <)\\\\]+)")
START_S = 120


def test_a_volume_is_that_of_sample(trained: TinyRun, tmp_path: Path) -> None:
    assert trained.on_checkpoint("sample", "--seeds=[5]", f"--out={tmp_path}") == 0
    desk = Desk(lit_medgen.load(trained.last), "", tmp_path)
    path = desk.file(desk.make(Wishes(5)), "nifti", tmp_path / "page")
    found, expected = nib.load(path), nib.load(tmp_path / path.name)
    assert np.array_equal(found.get_fdata(), expected.get_fdata())
    assert np.array_equal(found.affine, expected.affine)


def test_what_cannot_be_served_is_one_line(
    trained: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained.on_checkpoint("app", "--port=70000") == 2
    assert "--port is 70000" in one_line(capsys)
    monkeypatch.setattr("lit_medgen.browsing.find_spec", lambda _: None)
    assert trained.on_checkpoint("app") == 2
    assert "pip install 'lit_medgen[app]'" in one_line(capsys)


@pytest.mark.slow
def test_what_makes_no_images_and_a_port_that_is_taken_are_one_line(
    trained: TinyRun, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = run_of(phantoms, ("configs/crop_judge.yaml",))
    assert classifier.on_checkpoint("app") == 2
    assert "CropClassifier makes no images" in one_line(capsys)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert trained.on_checkpoint("app", f"--port={port}") == 2
    assert f"--port {port} is taken" in one_line(capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the server makes its private folder."""
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@pytest.fixture
def server(phantoms: Path, folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The page of a tiny SPADE GAN, in a process of its own behind the guard against networks, and its address."""
    words = ["app", f"--ckpt_path={run_of(phantoms, ('configs/spade_gan.yaml',)).last}", "--trainer.accelerator=cpu"]
    code = (
        "import atexit, sys, no_network; no_network.refuse(); from lit_medgen.__main__ import program\n"
        "atexit.register(lambda: print('attempts', no_network.attempts)); program()"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder), "GRADIO_SHARE": "True"}
    with (tmp_path / "printed.txt").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], env=environment, stdout=printed, stderr=printed, text=True, cwd=ROOT
        )
    address = None
    for _ in range(10 * START_S):
        address = re.search(r"http://127\.0\.0\.1:\d+/", (tmp_path / "printed.txt").read_text())
        if address or process.poll() is not None:
            break
        time.sleep(0.1)
    assert address, (tmp_path / "printed.txt").read_text()
    yield process, address[0]
    if process.poll() is None:
        process.kill()


def get(url: str | Request) -> tuple[str, Any]:
    """The text of an answer and its headers."""
    with urlopen(url, timeout=30) as answer:
        return answer.read().decode(errors="replace"), answer.headers


@pytest.mark.slow
def test_a_visitor_paints_makes_and_downloads_and_nothing_stays_or_leaves(
    server: tuple[subprocess.Popen[str], str],
    phantoms: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, address = server
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")  # else the client reports, whatever its argument says
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the client asks for a list of programs
    page, headers = get(address)
    assert set(HOSTS.findall(page)) == {address.split("/")[2]}
    assert headers["content-security-policy"].startswith("default-src 'self'")
    with pytest.raises(HTTPError, match="400"):  # a site whose name was made to lead here
        get(Request(address, headers={"Host": "evil.example"}))
    with pytest.raises(HTTPError, match="403"):
        get(f"{address}gradio_api/file={ROOT / 'README.md'}")
    _listens_on_loopback_alone(int(address.rsplit(":", 1)[1].strip("/")))
    (private,) = folder.glob("lit_medgen-app-*")
    assert private.stat().st_mode & 0o077 == 0

    run = run_of(phantoms, ("configs/spade_gan.yaml",))
    spec = lit_medgen.load(run.last).spec
    plane = empty_body(spec).plane(0).copy()
    plane[3:6, 3:6] = 7
    client = Client(address, verbose=False, analytics_enabled=False, download_files=tmp_path / "downloads")
    said, _ = client.predict(11, 1, 1, [], encoded(plane), api_name="/make")
    assert "1 of 1 made" in said
    nifti, dicom = (
        Path(each["value"] if isinstance(each, dict) else each) for each in client.predict(api_name="/files")
    )
    assert pydicom.dcmread(dicom).SyntheticData == "YES"
    assert PATIENT not in pydicom.dcmread(dicom).to_json()

    # The same map and seed by `sample`.
    maps = tmp_path / "maps"
    maps.mkdir()
    write_label_map(maps / "a.png", LabelMap(plane.T).classes, spec.spacing_mm)
    words = [f"--label_maps={maps}", "--seeds=[11]", "--format=nifti", "--audit=false", f"--out={tmp_path / 'made'}"]
    assert run.on_checkpoint("sample", *words) == 0
    (expected,) = (tmp_path / "made").glob("*.nii.gz")
    assert np.array_equal(nib.load(nifti).get_fdata(), nib.load(expected).get_fdata())

    # A file of a patient: read, and its name is nowhere.
    upload = tmp_path / f"{PATIENT}.png"
    write_label_map(upload, read_png(maps / "a.png")[0], spec.spacing_mm)
    opened, _ = client.predict(handle_file(str(upload)), api_name="/open_map")
    assert np.array_equal(decoded(opened, spec), plane)
    write_label_map(upload, np.full(spec.size, 99), spec.spacing_mm)
    with pytest.raises(AppError, match=r"map\.png: classes 99"):
        client.predict(handle_file(str(upload)), api_name="/open_map")
    assert not list(folder.rglob(f"*{PATIENT}*.png"))

    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert not list(folder.iterdir())
    printed = (tmp_path / "printed.txt").read_text()
    assert "attempts []" in printed
    assert "Traceback" not in printed
    assert "DOE" not in printed


def _listens_on_loopback_alone(port: int) -> None:
    """Of the machine's sockets that listen on this port, as the kernel lists them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    assert found == {"0100007F"}
    assert not [
        line for line in Path("/proc/net/tcp6").read_text().splitlines()[1:] if line.split()[1].endswith(f":{port:04X}")
    ]
