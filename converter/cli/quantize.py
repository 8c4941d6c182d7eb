"""`dprp quantize`: a file of 8 bits, and what it costs and gains."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...export import (
    AnsweredBy,
    Quantization,
    Ranges,
    Search,
    Target,
    evaluate_onnx,
    quantize_within,
)
from ...export import quantize as quantize_file
from ...files import written_whole
from ...models import load_data
from ..chain.data import Batches, Loader, data_file
from ..chain.metadata import onnx_preprocess
from ..chain.side_by_side import SideBySide, measured
from ..chain.targets import check_onnx_target
from ..errors import OptionError
from .console import note
from .verbs import QuantizeOptions

_JUDGES = 1000
"""Training images that judge, where layers are chosen."""


def quantize(asked: QuantizeOptions) -> SideBySide:
    """Quantises a file on training images, and scores and times both on test images.

    Raises:
        OptionError, ModelsError, ExportError: one sentence each; nothing has been written then.
    """
    target = check_onnx_target(asked.output, inputs=(asked.file, data_file(asked.data)), force=asked.force)
    if asked.device == "cuda":
        raise OptionError("dprp quantize makes files for the CPU; leave --device cuda out")
    if asked.max_drop is not None and asked.float_node:
        raise OptionError("--max-drop chooses the layers that stay in float32; leave --float-node out")
    preprocess, remark = onnx_preprocess(asked.file, None, None, None)
    if remark and not asked.quiet:
        note(remark)
    data = load_data(asked.data, download=asked.download)
    batches = Batches(data, preprocess, asked.batch_size, asked.seed, asked.workers)
    found: Quantization | Search
    with written_whole(target, force=asked.force, error=OptionError) as scratch:
        cpu, ranges, labelled = Target(asked.target), Ranges(asked.ranges), asked.judge == "labels"
        if asked.max_drop is None:
            images, _ = _parted(batches.calibration(asked.images), asked.images)
            found = quantize_file(
                asked.file, scratch, images, target=cpu, ranges=ranges, floats=asked.float_node, force=True
            )
        else:
            images, judges = _parted(batches.calibration(asked.images + _JUDGES), asked.images)
            if not judges:
                raise OptionError(f"{asked.data}: has no images left to judge by; lower --images {asked.images}")
            judged = judges if labelled else AnsweredBy(asked.file, judges)
            found = quantize_within(
                asked.file,
                scratch,
                images,
                judge=lambda file: evaluate_onnx(file, judged).top1,
                max_drop=asked.max_drop,
                target=cpu,
                ranges=ranges,
                force=True,
            )
        files = {str(asked.file): Path(asked.file), str(target): scratch}
        return measured(files, batches.test(asked.limit), found, threads=asked.threads, labelled=labelled)


def _parted(loader: Loader, images: int) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """So many images to find ranges on, and the rest, with labels, to judge by; in batches."""
    pairs = list(loader)
    pictures, labels = (torch.cat([torch.as_tensor(part) for part in parts]) for parts in zip(*pairs, strict=True))
    size = len(pairs[0][0])
    rest = (torch.split(part[images:], size) for part in (pictures, labels))
    return list(torch.split(pictures[:images], size)), [(x, y) for x, y in zip(*rest, strict=True) if len(x)]
