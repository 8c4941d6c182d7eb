"""The whole chain for a module in memory: `dprp.compress`, and `dprp.load` for what it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..analysis.accuracy import Accuracy, evaluate
from ..analysis.inputs import Inputs, Samples, joined
from ..analysis.losses import Sensitivity
from ..analysis.running import copied
from ..errors import OptionError
from ..planning.policies import Policy, parse_budget
from ..storage.checkpoint import load_compressed
from ..training.run_folder import RunFolder
from .compressed import Compressed, Outcome, network_of
from .compressing import JUDGES, CompressConfig, plan_and_convert, train_and_judge
from .conversion import CALIBRATION_IMAGES, forms_from, sensitivity_from
from .data import held_out
from .device import pick_device
from .folder import COMPRESSED

_BATCH = 100
_EXAMPLES = 8


def compress(
    model: nn.Module,
    train: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    *,
    budget: str | Policy,
    epochs: int = 0,
    headroom: float = CompressConfig.headroom,
    images: Samples | Iterable[Any] | None = None,
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
        model: takes images (N, C, H, W), or sound, videos or features, from (N, C) to (N, C, D, H, W), or several
            things as `Inputs`; untouched.
        train: batches of images and labels; without labels enough where there are no epochs. Images are `Inputs`
            where the model takes several things, here and in `test` and `images`.
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
    network = network_of(copied(model).cpu().eval(), sample[:_EXAMPLES], compressed=False)
    batches = [(part, None) for part in sample.split(_BATCH)]
    converted = plan_and_convert(network, target, config, calibrate_on=batches, folder=folder, progress=progress)
    judges = None if test is None else lambda: _gathered(test, JUDGES)
    made = train_and_judge(
        converted, network, target, config, train=train, test=test, judges=judges, folder=folder, progress=progress
    )
    before, after = (_score(one, test, config) for one in (network.model, made.model))
    found = Outcome(made.plan.budget, epochs, made.plan, before, after, made.verdict, made.gain)
    return Compressed(made.model, made.plan, found, sample[:_EXAMPLES].clone(), network.model)


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


def _gathered(given: Samples | Iterable[Any], count: int) -> Samples:
    """Up to so many images, in the order in which they come."""
    if isinstance(given, (Tensor, Inputs)):
        found: Samples = given[:count]
    else:
        parts: list[Samples] = []
        for batch in given:
            part = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(part, (Tensor, Inputs)):
                raise OptionError(
                    f"batches are of {type(part).__name__}; give tensors of images or Inputs, or (images, labels)"
                )
            parts.append(part)
            if sum(map(len, parts)) >= count:
                break
        if not parts:
            raise OptionError("there are no images in the batches; give at least 1")
        found = joined(parts)[:count]
    if not len(found) or (isinstance(found, Tensor) and not 2 <= found.dim() <= 5):
        raise OptionError(
            f"images have the shape {tuple(found.shape)}; give (N, C, H, W), or from (N, C) to (N, C, D, H, W), "
            "with N of at least 1"
        )
    return found.detach().cpu() if isinstance(found, Tensor) else found.cpu()
