"""What public data sheets say of some NVIDIA cards: memory, and the peak of dense products in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass

from lit_medgen.errors import InputError

GIB = 2**30
SHARE = 0.35
"""Of the peak that a training reaches, unless one is given: of a good one; small networks and 3D reach less."""


@dataclass(frozen=True)
class GPU:
    """A card, by its public data sheet.

    Attributes:
        name: as it is given on the command line.
        memory: bytes.
        flops: peak of products in bfloat16 with sums in float32, without sparsity, operations a second.
    """

    name: str
    memory: int
    flops: float

    def hours(self, flops: float, share: float = SHARE) -> float:
        """How long so many operations take at this share of the peak."""
        return flops / (share * self.flops) / 3600


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("RTX-3090", 24 * GIB, 71e12),
        GPU("RTX-4090", 24 * GIB, 165e12),
        GPU("RTX-5090", 32 * GIB, 209e12),
        GPU("L4", 24 * GIB, 121e12),
        GPU("L40S", 48 * GIB, 362e12),
        GPU("A6000", 48 * GIB, 155e12),
        GPU("A100-40GB", 40 * GIB, 312e12),
        GPU("A100-80GB", 80 * GIB, 312e12),
        GPU("H100", 80 * GIB, 989e12),
        GPU("H200", 141 * 10**9, 989e12),
        GPU("B200", 180 * 10**9, 2250e12),
    )
}
SHOWN = ("RTX-4090", "A100-40GB", "A100-80GB", "H100", "H200")
"""Those that are told of unless others are named."""


def named(names: list[str] | tuple[str, ...]) -> list[GPU]:
    """The cards of these names; InputError for one that is not known."""
    for name in names:
        if name not in GPUS:
            raise InputError(f"--gpus: no card {name!r} is known; give some of {', '.join(GPUS)}.")
    return [GPUS[name] for name in names]
