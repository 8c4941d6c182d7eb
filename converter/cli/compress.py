"""`dprp compress`: the whole chain, from a checkpoint to a verified and measured ONNX file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...files import written_whole
from ..analysis.agreement import agreement
from ..analysis.sensitivity import Sensitivity
from ..conversion.attached import plan_of
from ..planning.planner import DEFAULT_RANK_MULTIPLE
from ..planning.policies import LatencyBudget, parse_budget
from ..storage.checkpoint import save_compressed
from ..training.config import FinetuneConfig
from ..training.factor_moments import input_moments
from ..training.finetuning import finetune
from .console import note, silent
from .conversion import CALIBRATION_IMAGES, factorise, forms_from, sensitivity_from
from .convert import write_plan
from .data import Batches, data_file, open_data
from .device import pick_device
from .errors import CliError
from .export import export_network
from .folder import COMPRESSED, COMPRESSED_ONNX, DENSE_ONNX, PLAN, RECIPE, SUMMARY, check_folder, made_whole
from .measure import summarise
from .network import Network, open_network
from .summary import Summary
from .verdict import Verdict

_JUDGED = 500
"""Test images at most, of the first batch, to compare a trained network's answers with the dense one's."""


def compress(
    model: str,
    *,
    data: str,
    budget: str,
    epochs: int,
    output: Path | str,
    checkpoint: Path | str | None = None,
    forms: Sequence[str] = (),
    keep: Sequence[str] = (),
    rank_multiple: int = DEFAULT_RANK_MULTIPLE,
    calibration_images: int = CALIBRATION_IMAGES,
    sensitivity: str = Sensitivity.BEST.value,
    polish: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.005,
    distill: float = 0.7,
    augment: str | None = None,
    mixed_precision: str = "no",
    workers: int = 0,
    threads: int = 1,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    random_weights: bool = False,
    download: bool = False,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
    made_by: str = "compress",
    recipe: str | None = None,
) -> Summary:
    """Compresses, fine-tunes, fuses, exports, verifies, scores and times a network.

    Args:
        model: a name or `package.module:function`.
        data: as `dprp.models.load_data` takes it.
        budget: such as "macs=0.5" or "latency=0.6"; under latency, fine-tuning keeps the planned ranks.
        epochs: of fine-tuning; 0 stops after conversion.
        output: folder for plan.json, compressed.safetensors, dense.onnx, compressed.onnx, summary.json and,
            from the command line, recipe.yaml.
        checkpoint: weights.
        forms: channel, pointwise, spatial; () for all.
        keep: name patterns of layers that stay dense.
        rank_multiple: ranks are multiples of this.
        calibration_images: training images to plan and to fit the factors on; 0 fits them to the weights alone.
        sensitivity: best, energy, kl or mixed; what the plan takes as a layer's loss.
        polish: steps of training without labels before `epochs`; 0 for none, None for a minute or two where there
            are no epochs.
        batch_size: images in a batch.
        learning_rate, distill, mixed_precision: as in `FinetuneConfig`; the dense network is the teacher.
        augment: none, crop or crop-flip; None for what suits the data.
        workers: processes that read images ahead.
        threads: of ONNX Runtime where latency is measured.
        classes, input_shape, mean, std: None for the architecture's own.
        random_weights: go on without a checkpoint.
        download: let torchvision fetch its data set.
        force: replace what an earlier run left in the folder.
        seed: of all random numbers.
        device: auto, cpu or cuda, for all but the ONNX files.
        quiet: show neither notes nor a progress bar.
        made_by: the verb that the summary names; `demo` is this one with its own network and images.
        recipe: text of recipe.yaml; None for no such file.

    Returns:
        Dense against compressed.

    Raises:
        CliError, ConverterError, ModelsError, ExportError: one sentence each; nothing has been written then.
    """
    folder = Path(output)
    target = parse_budget(budget)
    # A plan by latency is a plan for these very ranks, so fine-tuning leaves them alone.
    to_prune = None if isinstance(target, LatencyBudget) else target
    asked = forms_from(forms)
    if epochs < 0:
        raise CliError(f"epochs {epochs} is below 0; give 0 to stop after conversion, or more")
    if calibration_images < 0:
        raise CliError(f"calibration images {calibration_images} is below 0; give 0 to go without, or about 2000")
    if threads < 1:
        raise CliError(f"threads {threads} is below 1; give the number of CPU threads for the latency")
    check_folder(folder, inputs=(checkpoint, data_file(data)), force=force)
    where = pick_device(device)
    config = FinetuneConfig(
        epochs=max(1, epochs),
        budget=to_prune,
        learning_rate=learning_rate,
        distill=distill,
        rank_multiple=rank_multiple,
        mixed_precision=mixed_precision,
        seed=seed,
        cpu=where.type == "cpu",
    )
    network = open_network(
        model,
        checkpoint=checkpoint,
        classes=classes,
        input_shape=input_shape,
        mean=mean,
        std=std,
        random_weights=random_weights,
        dense=True,
        seed=seed,
    )
    batches = Batches(
        open_data(data, network.classes(), download=download), network.preprocess, batch_size, seed, workers
    )
    train, test = batches.train(augment), batches.test()
    say = silent if quiet else note
    made = factorise(
        network,
        target,
        forms=asked,
        keep=keep,
        rank_multiple=rank_multiple,
        spare_ranks=epochs > 0 and to_prune is not None,
        calibrate_on=batches.calibration(calibration_images) if calibration_images else None,
        calibration_images=calibration_images,
        sensitivity=sensitivity_from(sensitivity),
        polish_steps=0 if polish is None and epochs > 0 else polish,
        threads=threads,
        seed=seed,
        device=where,
        progress=not quiet,
    )
    with made_whole(folder, force=force) as work:
        example = next(iter(test))[0][:8]
        say(f"exporting the dense {model}")
        export_network(network, work / DENSE_ONNX, example, device=where)
        low_rank = made.model
        if epochs > 0:
            say(f"fine-tuning down to {budget}: {epochs} epochs of {data}")
            low_rank = finetune(
                low_rank,
                train,
                config,
                evaluate_on=test,
                teacher=network.model,
                moments=None if made.calibration is None else input_moments(low_rank, made.calibration.images),
                progress=not quiet,
            )
        plan = plan_of(low_rank)
        say(str(plan))
        write_plan(plan, work / PLAN, force=False)
        save_compressed(low_rank, network.source, work / COMPRESSED)
        say("exporting and measuring the compressed one")
        compressed = Network(low_rank, network.source, compressed=True)
        verified = export_network(compressed, work / COMPRESSED_ONNX, example, device=where)
        summary = summarise(
            work,
            test,
            plan,
            verified,
            model=model,
            budget=budget,
            epochs=epochs,
            seed=seed,
            threads=threads,
            folder=folder,
            made_by=made_by,
        )
        if epochs > 0 and made.polished is not None:
            summary = replace(summary, notes=(*summary.notes, f"before training: {made.polished.done}"))
        if made.held_out is not None:
            said = made.verdict
            if epochs > 0 or said is None:  # training has seen the calibration images that were held out
                images = next(iter(batches.test(_JUDGED)))[0]
                said = Verdict(agreement(low_rank.to(where), network.model.to(where), images.to(where)))
                low_rank.cpu()
                network.model.cpu()
            summary = replace(summary, notes=(*summary.notes, str(said)))
        for name, text in ((SUMMARY, json.dumps(summary.to_dict(), indent=1) + "\n"), (RECIPE, recipe)):
            if text is not None:
                with written_whole(work / name, force=False, error=CliError) as file:
                    file.write_text(text, encoding="utf-8")
    return summary
