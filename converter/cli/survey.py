"""`dprp survey`: what is in a network."""

from __future__ import annotations

from pathlib import Path

from ..analysis.surveying import Survey
from ..analysis.surveying import survey as survey_layers
from .device import pick_device
from .network import open_network


def survey(
    model: str,
    *,
    checkpoint: Path | str | None = None,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    trust: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Survey:
    """Lists a network's layers, what they cost and how they may be factored.

    Args:
        model: a name, `package.module:function`, or a compressed `.safetensors`.
        checkpoint: weights; not needed, as only shapes count.
        classes: outputs; None for the architecture's own.
        input_shape: (channels, height, width); None for the architecture's own.
        trust: `package.module:function` that a compressed file may be built by.
        seed: of the weights where there is no checkpoint.
        device: auto, cpu or cuda.

    Raises:
        CliError, ConverterError, ModelsError: one sentence each.
    """
    where = pick_device(device)
    plain = checkpoint is None and not model.lower().endswith(".safetensors")
    network = open_network(
        model,
        checkpoint=checkpoint,
        classes=classes,
        input_shape=input_shape,
        random_weights=plain,
        trust=trust,
        seed=seed,
    )
    return survey_layers(network.model.to(where), network.example().to(where))
