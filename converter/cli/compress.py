"""`dprp compress`: the whole chain, from a checkpoint to a verified and measured ONNX file."""

from __future__ import annotations

import json
from dataclasses import replace

from ...files import written_whole
from ..analysis.agreement import agreement
from ..conversion.attached import plan_of
from ..planning.policies import LatencyBudget, parse_budget
from ..storage.checkpoint import save_compressed
from ..training.config import FinetuneConfig
from ..training.factor_moments import input_moments
from ..training.finetuning import finetune
from .asked import asked_conversion, asked_network
from .console import note, silent
from .conversion import factorise
from .convert import write_plan
from .data import Batches, data_file, open_data
from .device import pick_device
from .errors import CliError
from .exporting import export_network
from .folder import COMPRESSED, COMPRESSED_ONNX, DENSE_ONNX, PLAN, RECIPE, SUMMARY, check_folder, made_whole
from .measure import summarise
from .network import Network
from .recipes import written
from .summary import Summary
from .verbs import CompressOptions
from .verdict import Verdict

_JUDGED = 500
"""Test images at most, of the first batch, to compare a trained network's answers with the dense one's."""


def compress(asked: CompressOptions, *, made_by: str = "compress", recipe: str | None = None) -> Summary:
    """Compresses, fine-tunes, fuses, exports, verifies, scores and times a network.

    Args:
        asked: under latency, fine-tuning keeps the planned ranks; without epochs, polishing comes in its place.
        made_by: the verb that the summary names; `demo` is this one with its own network and images.
        recipe: text of recipe.yaml; None for these options.

    Returns:
        Dense against compressed.

    Raises:
        CliError, ConverterError, ModelsError, ExportError: one sentence each; nothing has been written then.
    """
    folder, epochs = asked.output, asked.epochs
    target = parse_budget(asked.budget)
    # A plan by latency is a plan for these very ranks, so fine-tuning leaves them alone.
    to_prune = None if isinstance(target, LatencyBudget) else target
    if epochs < 0:
        raise CliError(f"epochs {epochs} is below 0; give 0 to stop after conversion, or more")
    where = pick_device(asked.device)
    how = asked_conversion(asked, where, polish=0 if asked.polish is None and epochs > 0 else asked.polish)
    check_folder(folder, inputs=(asked.checkpoint, data_file(asked.data)), force=asked.force)
    config = FinetuneConfig(
        epochs=max(1, epochs),
        budget=to_prune,
        learning_rate=asked.learning_rate,
        distill=asked.distill,
        rank_multiple=asked.rank_multiple,
        mixed_precision=asked.mixed_precision,
        seed=asked.seed,
        cpu=where.type == "cpu",
    )
    network = asked_network(asked, seed=asked.seed, dense=True)
    images = open_data(asked.data, network.classes(), download=asked.download)
    batches = Batches(images, network.preprocess, asked.batch_size, asked.seed, asked.workers)
    train, test = batches.train(asked.augment), batches.test()
    say = silent if asked.quiet else note
    made = factorise(
        network,
        target,
        how,
        calibrate_on=batches.calibration(how.images) if how.images else None,
        spare_ranks=epochs > 0 and to_prune is not None,
        progress=not asked.quiet,
    )
    with made_whole(folder, force=asked.force) as work:
        example = next(iter(test))[0][:8]
        say(f"exporting the dense {asked.model}")
        export_network(network, work / DENSE_ONNX, example, device=where)
        low_rank = made.model
        if epochs > 0:
            say(f"fine-tuning down to {asked.budget}: {epochs} epochs of {asked.data}")
            low_rank = finetune(
                low_rank,
                train,
                config,
                evaluate_on=test,
                teacher=network.model,
                moments=None if made.calibration is None else input_moments(low_rank, made.calibration.images),
                progress=not asked.quiet,
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
            model=asked.model,
            budget=asked.budget,
            epochs=epochs,
            seed=asked.seed,
            threads=asked.threads,
            folder=folder,
            made_by=made_by,
        )
        if epochs > 0 and made.polished is not None:
            summary = replace(summary, notes=(*summary.notes, f"before training: {made.polished.done}"))
        if made.held_out is not None:
            said = made.verdict
            if epochs > 0 or said is None:  # training has seen the calibration images that were held out
                judges = next(iter(batches.test(_JUDGED)))[0].to(where)
                said = Verdict(agreement(low_rank.to(where), network.model.to(where), judges))
                low_rank.cpu()
                network.model.cpu()
            summary = replace(summary, notes=(*summary.notes, str(said)))
        texts = {
            SUMMARY: json.dumps(summary.to_dict(), indent=1) + "\n",
            RECIPE: written("compress", asked) if recipe is None else recipe,
        }
        for name, text in texts.items():
            with written_whole(work / name, force=False, error=CliError) as file:
                file.write_text(text, encoding="utf-8")
    return summary
