"""Small adversarial methods on whole phantom volumes: two players, and three of different periods.

python tests/toy_adversarial.py FOLDER PHANTOMS STEPS DEVICES PRECISION
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn.functional import softplus

from data_modules import ADNIDataModule
from data_modules.recipes.volumes import Preprocessing
from lit_medgen.batch import Batch
from lit_medgen.callbacks import EMA, Checkpoints
from lit_medgen.loggers import RunLogger
from lit_medgen.trainer import Trainer
from lit_medgen.training.adversarial import Adversarial, Player
from lit_medgen.training.learning_rate import WarmupCosine


class Toy(Adversarial):
    """Makes 8^3 volumes from noise; the discriminator is a linear function of them."""

    def __init__(self) -> None:
        super().__init__(learning_rate_schedule=WarmupCosine(2, 20))
        self.discriminator, self.generator = nn.Linear(512, 1), nn.Linear(4, 512)

    def players(self) -> Sequence[Player]:
        schedule = self.learning_rate_schedule
        return (
            Player("generator", self.loss, learning_rate_schedule=schedule, gradient_clip=1.0),
            Player("discriminator", self.discriminator_loss, [self.discriminator], gradient_clip=1.0, averaged=False),
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.fake = self.generator(torch.randn(len(batch.image), 4))
        return {"loss": softplus(-self.discriminator(self.fake)).mean()}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        real = self.discriminator(batch.image.flatten(1))
        return {"discriminator_loss": softplus(-real).mean() + softplus(self.discriminator(self.fake.detach())).mean()}


class Three(Toy):
    """An encoder too, which begins late, learns the generator's noise back, and has a say in the generator's loss.

    Args:
        periods: batches from one update to the next, of each player.
    """

    def __init__(self, periods: Sequence[int] = (1, 2, 3)) -> None:
        super().__init__()
        self.encoder, self.periods = nn.Linear(512, 4), periods

    def players(self) -> Sequence[Player]:
        generator, discriminator = super().players()
        encoder = Player(
            "encoder",
            self.encoder_loss,
            [self.encoder],
            partial(torch.optim.Adam, lr=1e-2),
            WarmupCosine(1, 5),
            start=4,
            averaged=False,
        )
        return [
            replace(player, every_n_batches=period)
            for player, period in zip((generator, discriminator, encoder), self.periods, strict=True)
        ]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        noise, fake = self.generated(batch)
        return {"loss": softplus(-self.discriminator(fake)).mean() + (self.encoder(fake) - noise).square().mean()}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        self.fake = self.generated(batch)[1]
        return super().discriminator_loss(batch)

    def encoder_loss(self, batch: Batch) -> Tensor:
        noise, fake = self.generated(batch)
        return (self.encoder(fake) - noise).square().mean()

    def generated(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Noise, b 4, and what the generator makes of it, b 512."""
        noise = torch.randn(len(batch.image), 4)
        return noise, self.generator(noise)


def run(
    folder: Path,
    phantoms: Path,
    steps: int,
    devices: int = 1,
    precision: str = "32-true",
    make: Callable[[], Toy] = Toy,
    callbacks: Sequence[Callback] = (),
) -> Toy:
    """Trains, or continues, until so many steps are done."""
    os.environ["PL_GLOBAL_SEED"] = "0"
    torch.manual_seed(0)
    model = make()
    data = ADNIDataModule(
        str(phantoms),
        preprocessing=Preprocessing(size=(8, 8, 8)),
        store_dir=str(phantoms / "toy"),
        num_jobs=1,
        fractions=(0.8, 0.2, 0.0),
    )
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp" if devices > 1 else "auto",
        devices=devices,
        precision=precision,
        default_root_dir=folder,
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=RunLogger(folder / "logs"),
        callbacks=[EMA(0.9), Checkpoints(1, keep=-1), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=data, ckpt_path="last")
    return model


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], Three)
