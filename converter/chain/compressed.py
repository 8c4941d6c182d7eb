"""A compressed module: what `dprp.compress` gives, and what can be done with it."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...export import Target, Verification
from ...files import written_whole
from ..analysis.accuracy import Accuracy
from ..analysis.inputs import Inputs, Samples
from ..errors import OptionError
from ..planning.plan import Plan
from ..storage.checkpoint import save_compressed
from ..storage.source import Source
from .exporting import export_network
from .folder import COMPRESSED, COMPRESSED_ONNX, DENSE_ONNX, PLAN, SUMMARY, check_folder, made_whole
from .gain import Gain
from .int8 import in_8_bits
from .measure import measured_in
from .network import Network
from .side_by_side import SideBySide
from .targets import check_onnx_target
from .totals import costs
from .verdict import Verdict

_BATCH = 100


@dataclass(frozen=True)
class Outcome:
    """What compression did to a module.

    Attributes:
        budget: as the plan has it.
        epochs: of training.
        plan: ranks where they ended up, and why the other layers stayed dense.
        dense, compressed: top-1 on the test batches; None without these.
        verdict: how often the answers are the dense network's, on images that nothing was fitted on; None without.
        gain: what training was worth; None without training or test batches, or where ranks fell on the way.
    """

    budget: str
    epochs: int
    plan: Plan
    dense: Accuracy | None
    compressed: Accuracy | None
    verdict: Verdict | None
    gain: Gain | None = None

    def __str__(self) -> str:
        lines = [str(self.plan)]
        if self.dense is not None and self.compressed is not None:
            lines.append(f"dense {self.dense}; compressed {self.compressed}")
        if self.gain is not None:
            lines.append(str(self.gain))
        if self.verdict is not None:
            lines.append(str(self.verdict))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "budget": self.budget,
            "epochs": self.epochs,
            **costs(self.plan),
            "top1": {
                "dense": None if self.dense is None else self.dense.top1,
                "before_training": None if self.gain is None else self.gain.before,
                "compressed": None if self.compressed is None else self.compressed.top1,
                "images": None if self.compressed is None else self.compressed.images,
            },
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
        }


@dataclass(frozen=True)
class Compressed:
    """A compressed module.

    Attributes:
        model: in eval mode on the CPU, with low-rank layers; trains as any other.
        plan: forms and ranks, and why the other layers stayed dense.
        summary: what compression did.
        example: a few inputs.
        dense: a copy of what it came from.
    """

    model: nn.Module
    plan: Plan
    summary: Outcome
    example: Samples
    dense: nn.Module

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Writes compressed.safetensors, plan.json and summary.json; `dprp.load` reads the first.

        Args:
            folder: is made; its parent must exist.
            force: replace what an earlier run left there.

        Raises:
            OptionError, CheckpointError: nothing has been written then.
        """
        check_folder(Path(folder), force=force)
        told = {**self.summary.to_dict(), "made_by": "compress", "result_id": secrets.token_hex(16)}
        with made_whole(Path(folder), force=force) as work:
            save_compressed(self.model, source_of(self.example), work / COMPRESSED)
            for name, text in ((PLAN, self.plan.to_json()), (SUMMARY, json.dumps(told, indent=1))):
                with written_whole(work / name, force=False, error=OptionError) as file:
                    file.write_text(text + "\n", encoding="utf-8")

    def to_onnx(
        self,
        path: str | Path,
        *,
        tolerance: float | None = None,
        half: bool = False,
        batch: int | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        labels: Sequence[str] = (),
        force: bool = False,
    ) -> Verification:
        """Fuses the factors and writes one ONNX file, if that computes the same as torch.

        Args:
            path: ends in .onnx.
            tolerance, half, batch: as for `dprp.export.to_onnx`.
            mean, std: per channel, by which inputs scaled to 0..1 were normalised; for the file's metadata.
            labels: names of the outputs in their order; for the file's metadata.
            force: write over an existing file.

        Raises:
            ConverterError, ExportError: nothing has been written then.
        """
        target = check_onnx_target(path, inputs=(), force=force)
        source = replace(source_of(self.example), mean=tuple(mean), std=tuple(std), labels=tuple(labels))
        try:
            source = Source.from_json(source.to_json())  # which looks at each value
        except (TypeError, ValueError) as error:
            raise OptionError(f"{path}: not written, {error}") from error
        network = replace(self._network(self.model), source=source)
        if labels and len(labels) != network.classes():
            raise OptionError(f"{len(labels)} labels for {network.classes()} outputs; give a name for each")
        return export_network(network, target, self.example, tolerance=tolerance, half=half, batch=batch, force=force)

    def measure(
        self,
        test: Iterable[Any],
        *,
        int8_on: Tensor | None = None,
        target: str = Target.AUTO.value,
        threads: int = 1,
    ) -> SideBySide:
        """Dense and compressed as ONNX files, perhaps in 8 bits as well: accuracy, size, time and memory on the CPU.

        Args:
            test: batches of images and labels, which can be gone through again.
            int8_on: a few hundred images, none of these, to find the ranges of files of 8 bits on; None for none.
            target: the CPU that files of 8 bits are made for: auto, x86-vnni, x86 or arm.
            threads: of ONNX Runtime.

        Returns:
            Figures of each; print it for a table.

        Raises:
            ConverterError, ExportError: one sentence.
        """
        targets = [str(one) for one in Target]
        if target not in targets:
            raise OptionError(f"target {target!r} is not one of {', '.join(targets)}; choose one of these")
        if isinstance(test, Iterator):
            raise OptionError("test can be gone through only once; give a list of batches, or a DataLoader")
        with tempfile.TemporaryDirectory(prefix="dprp-") as name:
            folder = Path(name)
            for model, file in ((self.dense, DENSE_ONNX), (self.model, COMPRESSED_ONNX)):
                export_network(self._network(model), folder / file, self.example)
            images = None if int8_on is None else torch.split(int8_on.detach().cpu(), _BATCH)
            found = () if images is None else in_8_bits(folder, images, target=Target(target))
            return measured_in(folder, test, *found, threads=threads)

    def _network(self, model: nn.Module) -> Network:
        """This one or the dense one."""
        return network_of(model, self.example, compressed=model is self.model)


def network_of(model: nn.Module, example: Samples, *, compressed: bool) -> Network:
    """A module in memory, with what it eats."""
    given = example if isinstance(example, Inputs) else None
    return Network(model, source_of(example), compressed, given)


def source_of(images: Samples) -> Source:
    """Says what the module eats, or the first of several things; it is nobody's by name."""
    return Source("a module in memory", None, tuple(images.shape[1:]), (), ())
