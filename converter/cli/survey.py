"""`dprp survey`: what is in a network."""

from __future__ import annotations

from ..analysis.surveying import Survey
from ..analysis.surveying import survey as survey_layers
from ..chain.device import pick_device
from ..chain.network import open_network
from .verbs import SurveyOptions


def survey(asked: SurveyOptions) -> Survey:
    """Lists a network's layers, what they cost and how they may be factored.

    Raises:
        ConverterError, ModelsError: one sentence each.
    """
    where = pick_device(asked.device)
    network = open_network(
        asked.model,
        checkpoint=asked.checkpoint,
        classes=asked.classes,
        input_shape=asked.input_shape,
        random_weights=asked.checkpoint is None and not asked.model.lower().endswith(".safetensors"),
        trust=asked.trust,
        seed=asked.seed,
    )
    return survey_layers(network.model.to(where), network.example().to(where))
