"""What is in a network, and what it can spare.

Takes a network and images; gives its layers, what each reads, and what each loses at every rank.
Changes nothing.
"""

from .accuracy import Accuracy, evaluate
from .calibration import Calibration, calibrate
from .inputs import Inputs
from .losses import BLENDS, Losses, Sensitivity
from .sensitivity import foretell, sensitivities
from .surveying import Layer, Survey, survey

__all__ = [
    "BLENDS",
    "Accuracy",
    "Calibration",
    "Inputs",
    "Layer",
    "Losses",
    "Sensitivity",
    "Survey",
    "calibrate",
    "evaluate",
    "foretell",
    "sensitivities",
    "survey",
]
