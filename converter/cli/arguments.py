"""Options that several verbs share, for typer."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

_NETWORK, _DATA, _TRAINING, _RANKS, _MACHINE = "Network", "Data", "Training", "Ranks", "Machine"


class DeviceName(str, Enum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class FormName(str, Enum):
    """How a kernel is split."""

    CHANNEL = "channel"
    POINTWISE = "pointwise"
    SPATIAL = "spatial"


class SensitivityName(str, Enum):
    """What a plan takes as a layer's loss."""

    BEST = "best"
    ENERGY = "energy"
    KL = "kl"
    MIXED = "mixed"


class OptimizerName(str, Enum):
    """What trains the factors."""

    SGD = "sgd"
    ADAMW = "adamw"


class AugmentName(str, Enum):
    """What happens to training images."""

    NONE = "none"
    CROP = "crop"
    CROP_FLIP = "crop-flip"


class PrecisionName(str, Enum):
    """Numbers to train in."""

    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


Model = Annotated[
    str,
    Argument(
        metavar="MODEL",
        show_default=False,
        help="A model by name (cifar_resnet20, any torchvision classifier), your own as package.module:function, "
        "or a compressed .safetensors.",
    ),
]
AnyModel = Annotated[
    str,
    Argument(
        metavar="FILE_OR_MODEL",
        show_default=False,
        help="A compressed .safetensors, an .onnx where that makes sense, or a model's name with --checkpoint.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    Option(show_default=False, rich_help_panel=_NETWORK, help="Weights: .pth, .th, .pt or .safetensors."),
]
Classes = Annotated[
    int | None, Option(min=1, show_default=False, rich_help_panel=_NETWORK, help="Outputs, if not the model's own.")
]
Input = Annotated[
    str | None,
    Option("--input", metavar="CxHxW", show_default=False, rich_help_panel=_NETWORK, help="Input, such as 3x32x32."),
]
Mean = Annotated[
    str | None,
    Option(metavar="M,M,M", show_default=False, rich_help_panel=_NETWORK, help="Of pixels scaled to 0..1."),
]
Std = Annotated[
    str | None,
    Option(metavar="S,S,S", show_default=False, rich_help_panel=_NETWORK, help="Of pixels scaled to 0..1."),
]
RandomWeights = Annotated[
    bool,
    Option(
        "--random-weights", rich_help_panel=_NETWORK, help="Go on without a checkpoint, with the weights as built."
    ),
]

Trust = Annotated[
    str | None,
    Option(
        metavar="PACKAGE.MODULE:FUNCTION",
        show_default=False,
        rich_help_panel=_NETWORK,
        help="The function of yours that a compressed file may be built by; no other code is run.",
    ),
]

Data = Annotated[
    str,
    Option(
        metavar="DATA",
        show_default=False,
        rich_help_panel=_DATA,
        help="digits, npz:FILE, folder:DIR, or a torchvision set as cifar10:ROOT.",
    ),
]
BatchSize = Annotated[int, Option(min=1, max=65_536, rich_help_panel=_DATA, help="Images in a batch.")]
Limit = Annotated[
    int | None, Option(min=1, show_default=False, rich_help_panel=_DATA, help="Use so many test images, at random.")
]
Workers = Annotated[int, Option(min=0, rich_help_panel=_DATA, help="Processes that read images ahead.")]
Download = Annotated[bool, Option("--download", rich_help_panel=_DATA, help="Let torchvision fetch its data set.")]
Augmentation = Annotated[
    AugmentName | None,
    Option("--augment", show_default=False, rich_help_panel=_DATA, help="Of training images, if not as usual."),
]

Budget = Annotated[
    str | None,
    Option(
        metavar="UNIT=PART",
        show_default=False,
        rich_help_panel=_RANKS,
        help="Part of the dense network to keep: macs=0.5, params=0.5 or latency=0.5.",
    ),
]
NeededBudget = Annotated[
    str,
    Option(
        metavar="UNIT=PART",
        show_default=False,
        rich_help_panel=_RANKS,
        help="Part of the dense network to keep: macs=0.5, params=0.5 or latency=0.5.",
    ),
]
Ratio = Annotated[
    float | None, Option(show_default=False, rich_help_panel=_RANKS, help="Part of each layer's full rank.")
]
Rank = Annotated[
    int | None, Option(show_default=False, rich_help_panel=_RANKS, help="The same rank for every layer.")
]
Energy = Annotated[
    float | None, Option(show_default=False, rich_help_panel=_RANKS, help="Part of each layer's energy to keep.")
]
Forms = Annotated[
    list[FormName] | None,
    Option("--form", show_default=False, rich_help_panel=_RANKS, help="Allowed forms; all by default. Repeatable."),
]
Keep = Annotated[
    list[str] | None,
    Option(
        metavar="PATTERN",
        show_default=False,
        rich_help_panel=_RANKS,
        help="Layers that stay dense, such as 'layer1.*'. Repeatable.",
    ),
]
RankMultiple = Annotated[
    int, Option(min=1, rich_help_panel=_RANKS, help="Under a budget, ranks are multiples of this.")
]

Calibrate = Annotated[
    str | None,
    Option(
        metavar="DATA",
        show_default=False,
        rich_help_panel=_RANKS,
        help="Images to plan and fit the factors on; strongly advised. As for --data.",
    ),
]
SensitivityKind = Annotated[
    SensitivityName,
    Option(
        "--sensitivity",
        rich_help_panel=_RANKS,
        help="A layer's loss, with calibration: of its output (energy), of the answers (kl), both; best tries.",
    ),
]
CalibrationImages = Annotated[
    int, Option(min=0, rich_help_panel=_RANKS, help="Training images to calibrate on at most; 0 for none.")
]
Polish = Annotated[
    int | None,
    Option(
        metavar="STEPS",
        min=0,
        show_default="a minute or two",
        rich_help_panel=_TRAINING,
        help="Train without labels on the calibration images; 0 for none.",
    ),
]

Epochs = Annotated[
    int, Option(show_default=False, rich_help_panel=_TRAINING, help="Passes over the training images.")
]
LearningRate = Annotated[float, Option("--lr", rich_help_panel=_TRAINING, help="Peak learning rate.")]
Distill = Annotated[
    float, Option(rich_help_panel=_TRAINING, help="Weight of the dense teacher's outputs in the loss, 0..1.")
]
MixedPrecision = Annotated[PrecisionName, Option(rich_help_panel=_TRAINING, help="Numbers to train in.")]
Optimizer = Annotated[OptimizerName, Option(rich_help_panel=_TRAINING, help="What trains the factors.")]
WeightDecay = Annotated[float, Option(min=0.0, rich_help_panel=_TRAINING, help="Of u and v.")]
Orthogonality = Annotated[float, Option(min=0.0, rich_help_panel=_TRAINING, help="Weight of that loss.")]
RankLoss = Annotated[float, Option(min=0.0, rich_help_panel=_TRAINING, help="Weight of that loss.")]
PruneUntil = Annotated[
    float, Option(rich_help_panel=_TRAINING, help="Part of the steps after which the budget is met.")
]
Teacher = Annotated[
    Path | None,
    Option(show_default=False, rich_help_panel=_TRAINING, help="Checkpoint of the dense network, to learn from."),
]
Threshold = Annotated[
    float | None,
    Option(
        show_default=False,
        rich_help_panel=_RANKS,
        help="Instead of a budget: drop singular values below this part of a layer's largest.",
    ),
]

Output = Annotated[Path, Option("--output", "-o", show_default=False, help="File to write.")]
OptionalOutput = Annotated[
    Path | None, Option("--output", "-o", show_default=False, help="File to write; none by default.")
]
OutputFolder = Annotated[Path, Option("--output", "-o", help="Folder to write.")]
Force = Annotated[bool, Option("--force", help="Write over what is there.")]
Seed = Annotated[int, Option(min=0, max=2**63 - 1, rich_help_panel=_MACHINE, help="Of the random numbers.")]
Device = Annotated[DeviceName, Option(rich_help_panel=_MACHINE, help="Where to compute.")]
Threads = Annotated[
    int, Option(min=1, max=1024, rich_help_panel=_MACHINE, help="ONNX Runtime's, where latency is measured.")
]
