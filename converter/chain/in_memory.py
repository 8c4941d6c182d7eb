"""The whole chain for a module in memory: `dprp.compress`, and what it gives."""

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
from torch.utils.data import DataLoader

from ...export import Target, Verification
from ...files import written_whole
from ..analysis.accuracy import Accuracy, evaluate
from ..analysis.running import copied
from ..analysis.sensitivity import Sensitivity
from ..errors import OptionError
from ..planning.plan import Plan
from ..planning.policies import Policy, parse_budget
from ..storage.checkpoint import load_compressed, save_compressed
from ..storage.source import Source
from ..training.run_folder import RunFolder
from .compressing import JUDGES, CompressConfig, plan_and_convert, train_and_judge
from .conversion import CALIBRATION_IMAGES, forms_from, sensitivity_from
from .data import Loader, held_out
from .device import pick_device
from .exporting import export_network
from .folder import COMPRESSED, COMPRESSED_ONNX, DENSE_ONNX, PLAN, SUMMARY, check_folder, made_whole
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
    """

    budget: str
    epochs: int
    plan: Plan
    dense: Accuracy | None
    compressed: Accuracy | None
    verdict: Verdict | None

    def __str__(self) -> str:
        lines = [str(self.plan)]
        if self.dense is not None and self.compressed is not None:
            lines.append(f"dense {self.dense}; compressed {self.compressed}")
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
    example: Tensor
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
            save_compressed(self.model, _source(self.example), work / COMPRESSED)
            for name, text in ((PLAN, self.plan.to_json()), (SUMMARY, json.dumps(told, indent=1))):
                with written_whole(work / name, force=False, error=OptionError) as file:
                    file.write_text(text + "\n", encoding="utf-8")

    def to_onnx(
        self,
        path: str | Path,
        *,
        tolerance: float | None = None,
        half: bool = False,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        labels: Sequence[str] = (),
        force: bool = False,
    ) -> Verification:
        """Fuses the factors and writes one ONNX file, if that computes the same as torch.

        Args:
            path: ends in .onnx.
            tolerance, half: as for `dprp.export.to_onnx`.
            mean, std: per channel, by which inputs scaled to 0..1 were normalised; for the file's metadata.
            labels: names of the outputs in their order; for the file's metadata.
            force: write over an existing file.

        Raises:
            ConverterError, ExportError: nothing has been written then.
        """
        target = check_onnx_target(path, inputs=(), force=force)
        source = replace(_source(self.example), mean=tuple(mean), std=tuple(std), labels=tuple(labels))
        try:
            source = Source.from_json(source.to_json())  # which looks at each value
        except (TypeError, ValueError) as error:
            raise OptionError(f"{path}: not written, {error}") from error
        network = Network(self.model, source, compressed=True)
        if labels and len(labels) != network.classes():
            raise OptionError(f"{len(labels)} labels for {network.classes()} outputs; give a name for each")
        return export_network(network, target, self.example, tolerance=tolerance, half=half, force=force)

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
                network = Network(model, _source(self.example), compressed=model is self.model)
                export_network(network, folder / file, self.example)
            images = None if int8_on is None else torch.split(int8_on.detach().cpu(), _BATCH)
            found = () if images is None else in_8_bits(folder, images, target=Target(target))
            return measured_in(folder, test, *found, threads=threads)


def compress(
    model: nn.Module,
    train: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    *,
    budget: str | Policy,
    epochs: int = 0,
    headroom: float = CompressConfig.headroom,
    images: Tensor | Iterable[Any] | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    forms: Sequence[str] = (),
    keep: Sequence[str] = (),
    rank_multiple: int | None = None,
    sensitivity: str = Sensitivity.BEST.value,
    polish: int | None = None,
    learning_rate: float = CompressConfig.learning_rate,
    distill: float = CompressConfig.distill,
    matching: float = CompressConfig.matching,
    mixed_precision: str = "no",
    folder: RunFolder | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Compressed:
    """Compresses a module: plans ranks, converts, polishes or fine-tunes.

    Args:
        model: takes images (N, C, H, W), or sound, videos or features, from (N, C) to (N, C, D, H, W); untouched.
        train: batches of images and labels; without labels enough where there are no epochs.
        test: batches of images and labels, to score both networks on.
        budget: such as "macs=0.5", "params=0.4" or "latency=0.6"; or a policy, such as `MacBudget(0.5)`.
        epochs: of fine-tuning on `train`; 0 for none.
        headroom: times the planned ranks to start fine-tuning at; above 1 they fall to the budget on the way.
        images: such inputs, or batches of them, to plan and to fit the factors on; the first of `train` without. No
            labels are needed.
        calibration_images: how many of these at most; some more judge.
        forms, keep, rank_multiple, sensitivity, polish, learning_rate, distill, matching, mixed_precision, seed: as
            for the command `dprp compress`.
        folder: in which training survives an interruption: a new one, or one to go on from.
        device: auto, cpu or cuda.
        progress: show bars.

    Raises:
        ConverterError: one sentence; the module is as it was.
    """
    target = parse_budget(budget) if isinstance(budget, str) else budget
    if epochs > 0 and train is None:
        raise OptionError(f"{epochs} epochs need training batches; give train, or epochs=0")
    if calibration_images < 1:
        raise OptionError(f"calibration images {calibration_images} is below 1; give at least 1, or about 2000")
    config = CompressConfig(
        forms=forms_from(forms),
        keep=keep,
        rank_multiple=rank_multiple,
        images=calibration_images,
        sensitivity=sensitivity_from(sensitivity),
        polish=polish,
        epochs=epochs,
        headroom=headroom,
        learning_rate=learning_rate,
        distill=distill,
        matching=matching,
        mixed_precision=mixed_precision,
        seed=seed,
        device=pick_device(device),
    )
    given = train if images is None else images  # never the test images, which are to score by
    if given is None:
        raise OptionError("there are no images; give images=, (N, C, H, W) and without labels, or train")
    sample = _gathered(given, calibration_images + held_out(calibration_images))
    network = Network(copied(model).cpu().eval(), _source(sample), compressed=False)
    converted = plan_and_convert(
        network, target, config, calibrate_on=_batches(sample), folder=folder, progress=progress
    )
    judges = None if test is None else lambda: _gathered(test, JUDGES)
    made = train_and_judge(
        converted, network, target, config, train=train, test=test, judges=judges, folder=folder, progress=progress
    )
    before, after = (_score(one, test, config) for one in (network.model, made.model))
    found = Outcome(made.plan.budget, epochs, made.plan, before, after, made.verdict)
    return Compressed(made.model, made.plan, found, sample[:8].clone(), network.model)


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """Reads a compressed module.

    Args:
        path: the compressed.safetensors that `Compressed.save` wrote, or the folder.
        model: the dense module, or one that is built like it; its weights do not matter, and it is untouched.

    Returns:
        The compressed module, in eval mode on the CPU.

    Raises:
        CheckpointError: it cannot be read, or does not fit the module.
    """
    path = Path(path)
    return load_compressed(path / COMPRESSED if path.is_dir() else path, lambda _: copied(model).cpu()).model


def _score(model: nn.Module, test: Iterable[Any] | None, config: CompressConfig) -> Accuracy | None:
    if test is None:
        return None
    found = evaluate(model.to(config.device), test)
    model.cpu()
    return found


def _gathered(given: Tensor | Iterable[Any], count: int) -> Tensor:
    """Up to so many images, in the order in which they come."""
    if isinstance(given, Tensor):
        found = given[:count]
    else:
        parts: list[Tensor] = []
        for batch in given:
            part = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(part, Tensor):
                raise OptionError(
                    f"batches are of {type(part).__name__}; give tensors of images, or (images, labels)"
                )
            parts.append(part)
            if sum(map(len, parts)) >= count:
                break
        if not parts:
            raise OptionError("there are no images in the batches; give at least 1")
        found = torch.cat(parts)[:count]
    if not 2 <= found.dim() <= 5 or not len(found):
        raise OptionError(
            f"images have the shape {tuple(found.shape)}; give (N, C, H, W), or from (N, C) to (N, C, D, H, W), "
            "with N of at least 1"
        )
    return found.detach().cpu()


def _batches(images: Tensor) -> Loader:
    pairs = [(image, 0) for image in images]
    return DataLoader(pairs, batch_size=_BATCH)  # type: ignore[arg-type]


def _source(images: Tensor) -> Source:
    """Says what the module eats; it is nobody's by name."""
    return Source("a module in memory", None, tuple(images.shape[1:]), (), ())
