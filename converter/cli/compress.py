"""`dprp compress`: the whole chain, from a checkpoint to a verified and measured ONNX file."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import Tensor

from ...export import Quantization, Target
from ...files import written_whole
from ..chain.compressing import JUDGES, Compression, plan_and_convert, train_and_judge
from ..chain.data import Batches, Loader, data_file, open_data
from ..chain.exporting import export_network
from ..chain.folder import COMPRESSED, COMPRESSED_ONNX, DENSE_ONNX, PLAN, RECIPE, SUMMARY, check_folder, made_whole
from ..chain.int8 import in_8_bits
from ..chain.measure import summarise
from ..chain.network import Network
from ..chain.summary import Summary
from ..chain.targets import write_plan
from ..errors import OptionError
from ..planning.policies import parse_budget
from ..storage.checkpoint import save_compressed
from .asked import asked_compression, asked_mix, asked_network, asked_run, told_how_to_go_on, with_labels
from .console import note, silent
from .recipes import written
from .verbs import CompressOptions

_INT8_IMAGES = 256
"""Training images on which ranges are found."""


def compress(asked: CompressOptions, *, made_by: str = "compress", recipe: str | None = None) -> Summary:
    """Compresses, fine-tunes, fuses, exports, verifies, scores and times a network.

    Args:
        asked: under latency, fine-tuning keeps the planned ranks; polishing comes before it.
        made_by: the verb that the summary names; `demo` is this one with its own network and images.
        recipe: text of recipe.yaml; None for these options.

    Returns:
        Dense against compressed.

    Raises:
        ConverterError, ModelsError, ExportError: one sentence each; nothing has been written then.
    """
    output = asked.output
    target = parse_budget(asked.budget)
    config = asked_compression(asked)
    check_folder(output, inputs=(asked.checkpoint, asked.labels, data_file(asked.data)), force=asked.force)
    folder = asked_run("compress", asked) if asked.epochs > 0 else None
    network = asked_network(asked, seed=asked.seed, dense=True)
    classes = network.classes()
    images = open_data(asked.data, classes, download=asked.download)
    network = with_labels(network, asked, images)
    batches = Batches(images, network.preprocess, asked.batch_size, asked.seed, asked.workers)
    train, test = batches.train(asked.augment, asked_mix(asked, taught=True), classes), batches.test()
    calibrate_on = batches.calibration(config.images) if config.images else None
    say = silent if asked.quiet else note
    converted = plan_and_convert(
        network, target, config, calibrate_on=calibrate_on, folder=folder, progress=not asked.quiet
    )
    with told_how_to_go_on("compress", folder), made_whole(output, force=asked.force) as work:
        example = next(iter(test))[0][:8]
        say(f"exporting the dense {asked.model}")
        export_network(network, work / DENSE_ONNX, example, device=config.device)
        if asked.epochs > 0:
            say(f"fine-tuning for {asked.epochs} epochs of {asked.data}")
        made = train_and_judge(
            converted,
            network,
            target,
            config,
            train=train,
            test=test,
            judges=None if calibrate_on is None else lambda: _images(batches.test(JUDGES)),
            folder=folder,
            progress=not asked.quiet,
        )
        say(str(made.plan))
        write_plan(made.plan, work / PLAN, force=False)
        save_compressed(made.model, network.source, work / COMPRESSED)
        say("exporting and measuring the compressed one")
        compressed = Network(made.model, network.source, compressed=True)
        verified = export_network(compressed, work / COMPRESSED_ONNX, example, device=config.device)
        found: tuple[Quantization, ...] = ()
        if asked.int8:
            ranged = torch.split(_images(batches.calibration(_INT8_IMAGES))[:_INT8_IMAGES], asked.batch_size)
            found = in_8_bits(work, ranged, target=Target(asked.target))
        summary = summarise(
            work,
            test,
            made.plan,
            verified,
            *found,
            model=asked.model,
            budget=asked.budget,
            epochs=asked.epochs,
            seed=asked.seed,
            threads=asked.threads,
            folder=output,
            made_by=made_by,
            gain=made.gain,
            said=_remarks(made, config.epochs),
        )
        texts = {
            SUMMARY: json.dumps(summary.to_dict(), indent=1) + "\n",
            RECIPE: written("compress", replace(asked, resume=None)) if recipe is None else recipe,
        }
        for name, text in texts.items():
            with written_whole(work / name, force=False, error=OptionError) as file:
                file.write_text(text, encoding="utf-8")
    if folder is not None:
        folder.finish()
    return summary


def _images(loader: Loader) -> Tensor:
    return torch.cat([images for images, _ in loader])


def _remarks(made: Compression, epochs: int) -> tuple[str, ...]:
    polished = made.conversion.polished
    before = [f"before training: {polished.done}"] if epochs > 0 and polished is not None else []
    return (*before, *([] if made.verdict is None else [str(made.verdict)]))
