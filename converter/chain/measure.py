"""Figures of the ONNX files of a result folder, dense and compressed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...export import Quantization, Verification, op_counts
from ..lowrank.costs import Unit
from ..planning.plan import Plan
from .data import Loader
from .folder import COMPRESSED_INT8, COMPRESSED_ONNX, DENSE_INT8, DENSE_ONNX
from .gain import Gain
from .side_by_side import SideBySide, measured
from .summary import Figures, Summary, remarks
from .versions import versions


def summarise(
    work: Path,
    test: Loader,
    plan: Plan,
    verified: Verification,
    *found: Quantization,
    model: str,
    budget: str,
    epochs: int,
    seed: int,
    threads: int,
    folder: Path,
    made_by: str,
    gain: Gain | None = None,
    said: tuple[str, ...] = (),
) -> Summary:
    """Scores and times all files.

    Args:
        work: folder with them.
        test: test images.
        plan: of the compressed network; counts parameters and MACs before and after.
        verified: how closely the compressed file agrees with torch.
        found: how those of 8 bits were made, dense and compressed; none where there are none.
        model, budget, epochs, seed: as the user gave them.
        threads: of ONNX Runtime.
        folder: where the files will be.
        made_by: the verb.
        gain: what training was worth; None without.
        said: further notes.

    Raises:
        ExportError: a file cannot be scored or timed.
    """
    files = measured_in(work, test, *found, threads=threads)
    counts = [
        {unit: plan.dense_total(unit) for unit in Unit},
        {unit: plan.total(unit) for unit in Unit},
    ]
    dense, compressed = (
        Figures(
            top1=top1,
            params=count[Unit.PARAMS],
            macs=count[Unit.MACS],
            onnx_bytes=file.size_bytes,
            median_ms=file.median_ms,
            p90_ms=file.p90_ms,
            images_per_s=file.images_per_s,
            peak_memory_bytes=file.peak_memory_bytes,
        )
        for top1, count, file in zip(files.top1[:2], counts, files.timed.files[:2], strict=True)
    )
    return Summary(
        model=model,
        budget=budget,
        epochs=epochs,
        seed=seed,
        dense=dense,
        compressed=compressed,
        files=files,
        max_rel_error=verified.max_rel,
        notes=(
            *remarks(dense, compressed, files.timed.files[1].speedup),
            *new_operators(work / DENSE_ONNX, work / COMPRESSED_ONNX),
            *files.notes,
            *([] if gain is None else [str(gain)]),
            *said,
        ),
        versions=versions(),
        folder=folder,
        made_by=made_by,
        gain=gain,
    )


def measured_in(work: Path, test: Iterable[Any], *found: Quantization, threads: int) -> SideBySide:
    """Scores and times the files of a folder.

    Args:
        work: holds the dense and the compressed one, and both in 8 bits where these were made.
        test, found, threads: as for `measured`.

    Raises:
        ExportError: a file cannot be scored or timed.
    """
    names = [DENSE_ONNX, COMPRESSED_ONNX, *([DENSE_INT8, COMPRESSED_INT8] if found else [])]
    return measured({name: work / name for name in names}, test, *found, threads=threads)


def new_operators(dense: Path, compressed: Path) -> list[str]:
    """A note on what a device that runs the dense file may lack, if there is something.

    Args:
        dense, compressed: ONNX files.

    Raises:
        ModelFileError: no such file, or not ONNX.
    """
    new = sorted(op_counts(compressed).keys() - op_counts(dense).keys())
    return [f"the compressed file has operators that the dense one has not: {', '.join(new)}"] if new else []
