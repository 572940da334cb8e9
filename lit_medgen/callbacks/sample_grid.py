"""Sample grids while training: the same seeds every time, so that pictures of different steps compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_medgen.batch import Requests, Split
from lit_medgen.callbacks.ema import averaged
from lit_medgen.callbacks.run_folder import run_folder
from lit_medgen.images.grids import enlarge, mosaic
from lit_medgen.images.origin import STATEMENTS
from lit_medgen.images.png import write_png
from lit_medgen.sampling import like_people, origin, samples, without_conditions
from lit_medgen.training.generator import Generator


class SampleGrid(Callback):
    """Every n steps: samples with the averaged weights to `<run folder>/grids/step_<n>.png` and to the loggers.

    Methods that show how a sample is made (`trajectory`) have a second picture of one sample's steps. Pictures made
    from patients' images stay in the run folder: loggers may send them away.

    Args:
        every_n_steps: steps between two grids.
        num: samples in a grid, with seeds 0, 1, ...
        num_steps: of sampling, at most (`Generator.in_few_steps`): grids of the paper's 1,000 would cost more than the
            training between them. None: as many as the method takes.
    """

    writes = ("grids/*.png",)

    def __init__(self, every_n_steps: int = 1000, num: int = 4, num_steps: int | None = 20) -> None:
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"SampleGrid.num_steps is {num_steps}; give at least 1, or null for the method's own.")
        self.every_n_steps, self.num, self.num_steps = every_n_steps, num, num_steps
        self._last = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Samples on the first process; the others wait at their next synchronisation."""
        step = trainer.global_step
        if step == self._last or step % self.every_n_steps or not isinstance(pl_module, Generator):
            return
        self._last = step
        if trainer.is_global_zero:
            self._plot(trainer, pl_module, step)

    @torch.no_grad()
    def _plot(self, trainer: Trainer, model: Generator, step: int) -> None:
        requests = self._requests(model)
        made_from = origin(requests.of_patients)
        with averaged(trainer, model), model.in_few_steps(self.num_steps):
            first = requests.joined([0]).condition.to(model.device)
            pictures = {
                "": torch.cat(list(samples(model, requests, self.num))),
                "trajectory_": model.trajectory(first, requests.seeds[0]),
            }
        folder = run_folder(trainer) / "grids"
        folder.mkdir(parents=True, exist_ok=True)
        for kind, images in pictures.items():
            if images is not None:
                colour = model.spec is not None and model.spec.is_colour
                picture = enlarge(mosaic(images.float().cpu(), colour))
                write_png(folder / f"{kind}step_{step:07d}.png", picture.swapaxes(0, 1), STATEMENTS[made_from])
                for logger in trainer.loggers if made_from == "synthetic" else []:
                    # At the step of the losses of before, so that a log that is rewound to a checkpoint keeps it.
                    show(logger, picture, trainer.fit_loop.epoch_loop._batches_that_stepped, f"{kind}samples")

    def _requests(self, model: Generator) -> Requests:
        """The same every time: seeds alone, or, of what is made from something, like unseen people."""
        if not model.required:
            return without_conditions(range(self.num))
        split: Split = "val" if model.data.people("val") else "train"  # where nobody is left for validation
        return like_people(model, model.data, split, self.num)


def show(logger: Any, picture: np.ndarray, step: int, name: str) -> None:
    """Sends a picture (rows columns, or rows columns 3, in [0, 1]) to any logger that takes one; a CSV log does not."""
    picture = (picture.clip(0, 1) * 255).round().astype(np.uint8)  # W&B takes floats for 0 ... 255
    if hasattr(logger, "log_image"):  # W&B and ours share this method
        logger.log_image(name, [picture], step=step)
    elif hasattr(logger.experiment, "add_image"):  # Lightning's TensorBoard
        logger.experiment.add_image(name, picture, step, dataformats="HWC"[: picture.ndim])
