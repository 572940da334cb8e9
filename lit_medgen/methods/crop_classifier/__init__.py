"""The classifier of noisy crops that guides LSDM (Zu 2023), and what it needs to fit."""

from lit_medgen.methods.crop_classifier.crop_classifier import CropClassifier

__all__ = ["CropClassifier"]
