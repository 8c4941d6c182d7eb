"""What our ONNX files say about themselves.

dprp.model, dprp.classes    how the plain network is called, and its outputs if they are not its own number
dprp.input                  3x32x32: channels x height x width
dprp.mean, dprp.std         per channel, of pixels scaled to 0..1, with commas; not there if nobody said
dprp.labels                 JSON of the outputs' names in their order, if somebody said
dprp.source_sha256          of the file that the dense weights came from
dprp.budget, dprp.layers    the plan: what was asked for, and JSON of "form:rank" by layer
dprp.macs, dprp.params      "20000000 of 41000000": under the plan, and dense
dprp.versions               JSON
"""

from __future__ import annotations

import json
from pathlib import Path

from ...export import read_metadata
from ...models import ModelInfo, Preprocess, preprocess_for
from ...models.registry import IMAGENET_MEAN, IMAGENET_STD
from ..errors import OptionError
from ..lowrank.costs import Unit
from ..planning.plan import Plan
from ..storage.source import Source
from .totals import ranks
from .values import numbers, shape
from .versions import versions


def onnx_metadata(source: Source, plan: Plan | None) -> dict[str, str]:
    """What to write into an ONNX file.

    Args:
        source: of the network.
        plan: None for a dense network.
    """
    about = {
        "dprp.model": source.model,
        "dprp.input": "x".join(map(str, source.input_shape)),
        "dprp.versions": json.dumps(versions()),
    }
    if source.mean:
        about["dprp.mean"], about["dprp.std"] = (",".join(map(str, part)) for part in (source.mean, source.std))
    if source.labels:
        about["dprp.labels"] = json.dumps(source.labels, ensure_ascii=False)
    if source.sha256 is not None:
        about["dprp.source_sha256"] = source.sha256
    if source.classes is not None:
        about["dprp.classes"] = str(source.classes)
    if plan is not None:
        about["dprp.budget"] = plan.budget
        about["dprp.layers"] = json.dumps(ranks(plan))
        for unit in Unit:
            about[f"dprp.{unit.value}"] = f"{plan.total(unit)} of {plan.dense_total(unit)}"
    return about


def onnx_preprocess(
    path: Path | str,
    input_shape: tuple[int, int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> tuple[Preprocess, str]:
    """How images become inputs of an ONNX file: as the user says, else as the file says, else as for ImageNet.

    Args:
        path: an ONNX file.
        input_shape, mean, std: what the user says, None where nothing.

    Returns:
        The preprocessing, and a remark on what had to be guessed (empty if nothing).

    Raises:
        ModelFileError: no such file, or not ONNX.
        OptionError: the file's own metadata does not read.
        DataError: numbers that do not fit together.
    """
    about = read_metadata(path)
    try:
        if input_shape is None and "dprp.input" in about:
            input_shape = shape("dprp.input", about["dprp.input"])
        mean, std = (
            given or (numbers(key, about[key]) if key in about else None)
            for given, key in ((mean, "dprp.mean"), (std, "dprp.std"))
        )
    except OptionError as error:
        raise OptionError(f"{path}: its metadata does not read ({error}); export it again") from error
    missing = {"--input 3x224x224": input_shape, "--mean": mean, "--std": std}
    guessed = [option for option, value in missing.items() if value is None]
    usual = preprocess_for(ModelInfo(str(path), (3, 224, 224), IMAGENET_MEAN, IMAGENET_STD), input_shape)
    remark = f"{path}: says nothing of its input; taking ImageNet's for {', '.join(guessed)}" if guessed else ""
    return Preprocess(usual.input_shape, mean or usual.mean, std or usual.std), remark
