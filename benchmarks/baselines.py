"""Methods and their baselines on the real brains of IXI, for the same time each: trained, evaluated and compared.

All read the same slices (2D) or volumes (3D) of the same people. Before a model is trained, a short pilot measures its
steps per second, so that its learning rate ends with its time. A model of two stages has half of the time for the first
and what is left for the second; models share a first stage. No model is validated while it trains.

    python -m benchmarks.baselines --minutes 10 --dim 2 --out runs/baselines_2d
    python -m benchmarks.baselines --minutes 10 --dim 3 --out runs/baselines_3d --only ddpm cdpm

The same command goes on with a comparison that was interrupted: finished models stay, the one that was training goes on
from its newest checkpoint. On a machine that does other work too, `--clock processor` gives each model the same time of
the processor instead. Below the folder of --out:

    plans/<model>.yaml         what `fit` was given
    <model>/                   its run folder, with its report
    done/<model>.json          time and steps that it was given, and took
    logs/<model>.txt           what was printed
    times.csv                  all of these, in one table
    comparison/                the table and figures of `compare`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.equal_time import Comparison, Model
from lit_medgen.errors import RunError

UNCONDITIONAL = ('--model.init_args.network.init_args.covariates={"numbers": [], "categories": {}}',)
ON_CODES = (
    *UNCONDITIONAL,
    *(f"--model.init_args.network.init_args.{end}_channels=32" for end in ("in", "out")),
    "--model.init_args.network.init_args.channels=[96,192]",
    "--model.init_args.network.init_args.attention=[false,true]",
)
"""An LDM whose first stage is the VQGAN: latents of 10 x 12 embedded codes, of 32 channels."""
PLAIN_CDPM = ("--model=lit_medgen.methods.CDPM", "--model.init_args.network=lit_medgen.networks.SliceUNet")
RATES = ("optimizer", "encoder_optimizer", "discriminator_optimizer")
VAEGAN_OF_FEATURES = (
    *("--model.init_args.rec_space=features", "--model.init_args.reconstruction_weight=20"),
    *("--model.init_args.kl_weight=1", *(f"--model.init_args.{each}.init_args.lr=5e-4" for each in RATES)),
)


def shipped(method: str, ixi: str = "") -> tuple[str, ...]:
    """The configs of a method on IXI."""
    return f"configs/{method}.yaml", f"configs/demo/{method}.yaml", f"configs/ixi/{ixi or method}.yaml"


GANS = ("wgan", "vaegan", "alpha_wgan", "ccegan", "hagan")
FIRST_STAGES = {
    2: (Model("vqgan", shipped("vqgan")), Model("autoencoder_kl_2d", shipped("autoencoder_kl_2d"))),
    3: (Model("autoencoder_kl", shipped("autoencoder_kl")),),
}
"""Dimension -> the models that others are built on, and that make no images of their own."""
MODELS = {
    2: (
        *(Model(gan, shipped(gan, "gan_2d")) for gan in GANS),
        Model("vaegan_features", shipped("vaegan", "gan_2d"), options=VAEGAN_OF_FEATURES),
        Model("ddpm_2d", shipped("ddpm_2d")),
        Model("ihdm", shipped("ihdm"), "vqgan"),
        Model("absorbing", shipped("absorbing"), "vqgan"),
        Model("autoregressive", shipped("autoregressive"), "vqgan"),
        Model("ldm_vqgan", shipped("ldm_2d"), "vqgan", ON_CODES),
        Model("ldm_2d", shipped("ldm_2d"), "autoencoder_kl_2d", UNCONDITIONAL),
    ),
    3: (
        *(Model(gan, shipped(gan, "gan")) for gan in GANS),
        Model("vaegan_features", shipped("vaegan", "gan"), options=VAEGAN_OF_FEATURES),
        Model("ddpm", shipped("ddpm")),
        Model("cdpm", shipped("cdpm")),
        Model("cdpm_plain", shipped("cdpm"), options=PLAIN_CDPM),
        Model("ldm", shipped("ldm"), "autoencoder_kl", UNCONDITIONAL),
    ),
}
"""Dimension -> the models that are compared.

cdpm has its demo's factor prior, cdpm_plain is the paper's; vaegan compares pixels, vaegan_features what its
discriminator sees, as the paper has it.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Compares models; returns the exit code of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="of training of each model")
    parser.add_argument("--dim", type=int, choices=(2, 3), default=2, help="slices or volumes")
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="of these models alone")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="what minutes are counted by")
    parser.add_argument("--pilot_seconds", type=float, default=20.0, help="of the pilot of each model")
    parser.add_argument("--num", type=int, help="samples of each model; as many as test people unless given")
    parser.add_argument("--batch_size", type=int, default=8, help="samples made at once")
    options = parser.parse_args(args)
    models = {model.name: model for model in MODELS[options.dim]}
    if unknown := [name for name in options.only or () if name not in models]:
        parser.error(f"--only: no model {unknown[0]!r}; choose from {', '.join(models)}")
    comparison = Comparison(
        options.out.absolute(),
        options.minutes * 60,
        options.clock,
        options.pilot_seconds,
        options.num,
        options.batch_size,
    )
    try:
        comparison.compare([models[name] for name in options.only or models], FIRST_STAGES[options.dim])
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
