"""The folder in which a training run survives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import OptionError
from ..training.run_folder import RunFolder


def run_folder(
    output: Path,
    *,
    folder: Path | None,
    resume: Path | None,
    save_every: int | None,
    texts: Mapping[str, str],
    log: str | None,
    force: bool,
) -> RunFolder | None:
    """The folder of a run: a new one, one to go on from, or none.

    Args:
        output: what the run will write; the folder is beside it, named .run, unless it is named.
        folder: another one; None for the usual one.
        resume: one to go on from; None to begin.
        save_every: steps between saves; 0 for no folder, None for as often as suits.
        texts: what else to keep in it, by file name.
        log: a tracker that is told of every step; None for none.
        force: replace what another run left there.

    Raises:
        OptionError: options that do not go together.
        TrainingError: there is something in the way, or nothing to go on from.
    """
    if resume is not None:
        if folder is not None and folder.resolve() != resume.resolve():
            raise OptionError(f"--resume {resume} and --run {folder} are two folders; leave --run out")
        return RunFolder(resume, resume=True, every=save_every or None, log=log)
    if save_every == 0:
        if folder is not None:
            raise OptionError(f"--save-every 0 keeps no run, --run {folder} names its folder; leave one of them out")
        if log is not None:
            raise OptionError(f"--log {log} writes to the run's folder, --save-every 0 keeps none; leave it out")
        return None
    # A folder's name may have a dot: of result-0.5 and result-0.3, each has a run.
    beside = output.stem if output.suffix == ".safetensors" else output.name
    folder = folder or output.with_name(f"{beside}.run")
    return RunFolder(folder, every=save_every, force=force, texts=texts, log=log)
