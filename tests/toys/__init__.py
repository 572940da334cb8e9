"""Methods of eight kinds and a data set, each in one short file: what a method that is still to come has to bring."""

from toys.attributes import Portrait
from toys.classifier import SexClassifier
from toys.crops import Patch
from toys.data import Heads
from toys.frozen import Coder, Prior, Refiner
from toys.label_maps import Painter
from toys.players import Trio
from toys.sources import Translator
from toys.texts import Caption

__all__ = [
    "Caption",
    "Coder",
    "Heads",
    "Painter",
    "Patch",
    "Portrait",
    "Prior",
    "Refiner",
    "SexClassifier",
    "Translator",
    "Trio",
]
