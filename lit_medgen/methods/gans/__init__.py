"""The adversarial baselines that the papers compare with."""
