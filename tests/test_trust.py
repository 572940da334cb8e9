"""Config files: what they name is checked before anything is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import ROOT, one_line

from lit_medgen.__main__ import main
from lit_medgen.errors import InputError
from lit_medgen.trust import TRUSTED, TRUSTED_IN_CONFIGS, prefixes, refuse_foreign_classes, trusted, trusting
from lit_medgen.words import checked


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `evil` that leaves a mark when it is imported; gives the mark."""
    mark = tmp_path / "imported"
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(folder))
    yield mark
    sys.modules.pop("evil", None)


FOREIGN: dict[str, Any] = {
    "class_path": {"trainer": {"callbacks": [{"class_path": "evil.Thing"}]}},
    "text": {"trainer": {"callbacks": ["evil.Thing"]}},
    "model": {"model": {"class_path": "evil.Thing"}},
    "optimizer": {"model": {"init_args": {"optimizer": {"class_path": "evil.Thing"}}}},
    "sampler, short": {"model": {"init_args": {"sampler": "evil.Thing"}}},
    "data": {"data": {"class_path": "evil.Thing", "init_args": {}}},
    "built": {"name": "evil", "model": {"init_args": {"sampler": "${name}.Thing"}}},
    "built by a resolver": {"model": {"init_args": {"sampler": "${oc.decode:'evil.Thing'}"}}},
    "a text's value": {
        "data": {"init_args": {"table": "evil.Thing"}},
        "model": {"init_args": {"sampler": "${data.init_args.table}"}},
    },
    "a text that is YAML": {"model": {"init_args": {"sampler": "{class_path: evil.Thing}"}}},
    "a text that is a block": {"model": {"init_args": {"sampler": "class_path: evil.Thing"}}},
    "from the environment": {"model": {"class_path": "${oc.env:EVIL}"}},
}


def test_a_command_in_a_file_is_not_run(tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canary = tmp_path / "canary"
    section = {
        "class_path": "data_modules.ADNIDataModule",
        "init_args": {"root": str(phantoms), "store_dir": str(tmp_path / "prepared"), "num_jobs": 1},
    }
    steps = {"size": [8, 8, 8], "raw_head": {"unbias": False, "strip": f"touch {canary} {{input}} {{output}}"}}
    section["init_args"]["preprocessing"] = steps
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(section))
    assert main(["prepare", "--data", str(file)]) == 2
    assert "--trust_config" in one_line(capsys)
    assert not canary.exists()
    dotted = {"data": {"init_args": {"preprocessing.raw_head.strip": "touch {input} {output}"}}, "name": "2025-02-30"}
    file.write_text(yaml.safe_dump(dotted).replace("'2025-02-30'", "2025-02-30"))  # no date, and no reason to look away
    with pytest.raises(InputError, match="strip is the command"):
        checked(["fit", "--config", str(file)])
    file.write_text(yaml.safe_dump(section))
    assert main(["prepare", "--trust_config", "--data", str(file)]) == 2  # every image is rejected: no brain came out
    assert canary.exists()


@pytest.mark.parametrize("place", FOREIGN)
def test_foreign_code_is_not_imported(
    place: str, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVIL", "evil.Thing")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "overlay.yaml"
    file.write_text(yaml.safe_dump(FOREIGN[place]))
    assert main(["fit", "--config", str(ROOT / "configs/cdpm.yaml"), f"--config={file}"]) == 2
    line = one_line(capsys)
    assert str(file) in line
    assert "--trust_config" in line
    assert not trap.exists()


def test_a_file_that_a_config_names_is_looked_at_too(trap: Path, tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text(yaml.safe_dump([{"class_path": "evil.Thing"}]))
    outer = tmp_path / "outer.yaml"
    outer.write_text(yaml.safe_dump({"trainer": {"callbacks": "inner.yaml"}}))
    with pytest.raises(InputError, match=r"inner\.yaml: names the class 'evil\.Thing'"):
        checked(["fit", "--config", str(outer)])
    with pytest.raises(InputError, match=r"inner\.yaml"):
        checked(["fit", f"--trainer.callbacks={tmp_path / 'inner.yaml'}"])
    assert not trap.exists()


def test_prepare_checks_as_well(trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({"class_path": "evil.Thing", "init_args": {}}))
    assert main(["prepare", "--data", str(file)]) == 2
    assert "evil.Thing" in one_line(capsys)
    assert not trap.exists()


def test_a_user_may_trust_a_file(trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({"class_path": "evil.Thing", "init_args": {}}))
    assert main(["prepare", "--trust_config", "--data", str(file)]) == 2  # it is no data module
    assert trap.exists()


def test_every_shipped_config_is_trusted_and_so_is_the_command_line() -> None:
    files = [str(path) for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweeps"]
    assert len(files) > 5
    words = ["fit", *files, "--trainer.callbacks=[{class_path: evil.Thing}]", "--name=run.v2"]
    assert checked(words) == words
    assert checked(["fit", "--trust_config"]) == ["fit"]


def test_ordinary_texts_are_no_classes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    init = {"root": "${oc.env:SCRATCH}/os.path", "table": "os.csv", "pattern": "os.path", "attributes": ["os.path"]}
    config = {"name": "run.v2", "data": {"init_args": init}, "trainer": {"max_steps": "${model.init_args.total}"}}
    config["model"] = {"init_args": {"sampler": {"class_path": "Heun"}}}
    file.write_text(yaml.safe_dump(config))
    checked(["fit", "--config", str(file)])


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("lit_medgen.methods.CDPM", True),
        ("torch.optim.AdamW", True),
        ("lightning.pytorch.callbacks.LearningRateMonitor", True),
        ("lit_medgen.methods.Missing", True),  # refused by its reader
        ("lit_medgen.stopping.subprocess.Popen", False),
        ("lightning.pytorch.trainer.trainer.os.system", False),
        ("torch.hub.load", False),
        ("lit_medgenx.Thing", False),
        ("os.system", False),
    ],
)
def test_a_path_must_stay_in_trusted_packages(name: str, allowed: bool) -> None:
    assert trusted(name, TRUSTED_IN_CONFIGS) == allowed
    assert trusted(name, TRUSTED) == (allowed and not name.startswith("lightning"))


def test_a_package_that_the_user_trusts_is_no_way_out_of_it(tmp_path: Path) -> None:
    with trusting(prefixes("json.decoder")):
        refuse_foreign_classes([{"class_path": "json.decoder.JSONDecoder"}], tmp_path)
        with pytest.raises(InputError, match=r"json\.decoder\.re\.compile.*--trust_config \(in Python: trust="):
            refuse_foreign_classes([{"class_path": "json.decoder.re.compile"}], tmp_path)
    with pytest.raises(InputError, match=r"json\.decoder"):
        refuse_foreign_classes([{"class_path": "json.decoder.JSONDecoder"}], tmp_path)
    with pytest.raises(InputError, match="folder/mine"):
        prefixes(["folder/mine"])
