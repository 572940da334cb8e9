"""The verb `app`, on a trainer, so that it runs on its device."""

from __future__ import annotations

import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L

from lit_medgen.app.desk import Desk, servable
from lit_medgen.app.environment import isolate
from lit_medgen.batch import Requests
from lit_medgen.checkpoints import behind_link
from lit_medgen.errors import InputError, RunError, describe
from lit_medgen.files import file_hash
from lit_medgen.loading import restore
from lit_medgen.output import say
from lit_medgen.sampling import facts_of_conditions
from lit_medgen.signals import Stop, temporary_folder
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method
from lit_medgen.verbs import refuse_other_data

if TYPE_CHECKING:
    from data_modules.base import MedicalDataModule

MAX_PORT = 65535


class Browsing(L.Trainer):
    """Lightning's trainer with a verb that shows a model in a browser."""

    run_name: str

    def app(
        self,
        model: Method,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        port: int | None = None,
    ) -> None:
        """Try a model in a browser on this machine: paint a label map, choose seeds and attributes, look, download.

        Args:
            model: the method; from the checkpoint unless given.
            datamodule: its label maps of test people, where they are prepared, can be painted on; nothing else reads
                data.
            ckpt_path: the checkpoint to sample from.
            port: of 127.0.0.1; None: the first free one from 7860 on.
        """
        if ckpt_path is None:
            raise InputError("app: --ckpt_path is missing; give a checkpoint, e.g. runs/<name>/checkpoints/last.ckpt.")
        if port is not None and not 0 < port <= MAX_PORT:
            raise InputError(f"--port is {port}; give a number from 1 to {MAX_PORT}, or leave it out.")
        if self.world_size > 1:
            raise InputError(f"trainer.devices: {self.world_size} processes; `app` takes one, so give 1.")
        if find_spec("gradio") is None:
            raise InputError("app: the page needs gradio, which is not installed; pip install 'lit_medgen[app]'.")
        ckpt_path = behind_link(ckpt_path)
        restore(model, Path(ckpt_path))
        generator = servable(model)
        generator.to(self.strategy.root_device).eval()
        maps = _maps(generator, datamodule, ckpt_path)  # type: ignore[arg-type]
        with temporary_folder("lit_medgen-app-") as folder, suppress(Stop):
            isolate(str(folder))
            self._serve(Desk(generator, file_hash(Path(ckpt_path)), folder, maps), port)

    def _serve(self, desk: Desk, port: int | None) -> None:
        """Until Ctrl-C or SIGTERM."""
        from lit_medgen.app.page import Page  # gradio, an extra, which reads its environment when it is imported
        from lit_medgen.app.serving import served  # as above

        with served(Page(desk, self.run_name).blocks(), port) as address:
            say(f"{address} shows {self.run_name}; Ctrl-C ends it and removes its files")
            threading.Event().wait()


def _maps(model: Generator, data: MedicalDataModule | None, ckpt_path: str) -> Requests | None:
    """The label maps of test people, of a model that is made from such; None, which one line explains, without data."""
    if data is None or "label_map" not in model.required:
        return None
    try:
        if not (store := data.address.folder).is_dir():
            raise InputError(f"no prepared data at {store}")
        data.setup("test")
        refuse_other_data(ckpt_path, data.spec, facts_of_conditions(model))
        return data.requests("test")
    except (RunError, OSError) as error:
        say(f"no maps of the data are offered: {describe(error).removesuffix('.')}.")
        return None
