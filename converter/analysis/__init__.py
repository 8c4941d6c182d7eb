"""What is in a network, and what it can spare.

Takes a network and images; gives its layers, what each reads, and what each loses at every rank.
Changes nothing.
"""

from .accuracy import Accuracy, evaluate
from .calibration import Calibration, calibrate
from .sensitivity import Sensitivity, sensitivities
from .surveying import Layer, Survey, survey

__all__ = [
    "Accuracy",
    "Calibration",
    "Layer",
    "Sensitivity",
    "Survey",
    "calibrate",
    "evaluate",
    "sensitivities",
    "survey",
]
