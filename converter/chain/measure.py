"""Figures of two ONNX files, dense and compressed."""

from __future__ import annotations

from pathlib import Path

from ...export import Verification, benchmark, evaluate_onnx
from ..lowrank.costs import Unit
from ..planning.plan import Plan
from .data import Loader
from .folder import COMPRESSED_ONNX, DENSE_ONNX
from .summary import Figures, Summary, remarks
from .versions import versions


def summarise(
    work: Path,
    test: Loader,
    plan: Plan,
    verified: Verification,
    *,
    model: str,
    budget: str,
    epochs: int,
    seed: int,
    threads: int,
    folder: Path,
    made_by: str,
) -> Summary:
    """Scores and times both files.

    Args:
        work: folder with both.
        test: test images.
        plan: of the compressed network; counts parameters and MACs before and after.
        verified: how closely the compressed file agrees with torch.
        model, budget, epochs, seed: as the user gave them.
        threads: of ONNX Runtime.
        folder: where the files will be.
        made_by: the verb.

    Raises:
        ExportError: a file cannot be scored or timed.
    """
    files = [work / DENSE_ONNX, work / COMPRESSED_ONNX]
    scores = [evaluate_onnx(file, test) for file in files]
    timed = benchmark(files, threads=threads)
    counts = [
        {unit: plan.dense_total(unit) for unit in Unit},
        {unit: plan.total(unit) for unit in Unit},
    ]
    dense, compressed = (
        Figures(
            top1=score.top1,
            params=count[Unit.PARAMS],
            macs=count[Unit.MACS],
            onnx_bytes=time.size_bytes,
            median_ms=time.median_ms,
            p90_ms=time.p90_ms,
        )
        for score, count, time in zip(scores, counts, timed.files, strict=True)
    )
    speedup = timed.files[1].speedup
    return Summary(
        model=model,
        budget=budget,
        epochs=epochs,
        seed=seed,
        dense=dense,
        compressed=compressed,
        speedup=speedup,
        images=scores[1].images,
        max_rel_error=verified.max_rel,
        cpu=timed.environment.cpu,
        threads=threads,
        notes=(*remarks(dense, compressed, speedup), *timed.notes),
        versions=versions(),
        folder=folder,
        made_by=made_by,
    )
