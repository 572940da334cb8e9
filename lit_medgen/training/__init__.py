"""What methods share: steps, seeding, logging, the checkpoint's facts, frozen parts, adversarial players."""

from lit_medgen.training.learning_rate import Constant, WarmupCosine

__all__ = ["Constant", "WarmupCosine"]
