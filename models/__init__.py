"""Architectures, checkpoints and data sets.

build, info, names             networks by name: ours, torchvision's, or a user's own function
read_state_dict, load_weights  checkpoints, safely and all or nothing
load_data, loader              labelled images as batches
"""

from .augment import Augment
from .checkpoints import load_weights, read_state_dict
from .cifar_resnet import (
    CifarResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
)
from .datasets import ImageData, check_labels, load_data
from .digits import DIGITS_WEIGHTS, digits_cnn
from .errors import ArchitectureError, DataError, ModelsError, WeightsError
from .loaders import loader
from .mixing import Mix
from .preprocess import Preprocess, preprocess_for
from .registry import ModelInfo, build, info, names

__all__ = [
    "DIGITS_WEIGHTS",
    "ArchitectureError",
    "Augment",
    "CifarResNet",
    "DataError",
    "ImageData",
    "Mix",
    "ModelInfo",
    "ModelsError",
    "Preprocess",
    "WeightsError",
    "build",
    "check_labels",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "digits_cnn",
    "info",
    "load_data",
    "load_weights",
    "loader",
    "names",
    "preprocess_for",
    "read_state_dict",
]
