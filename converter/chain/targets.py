"""Files that are written: whether they may be, before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...files import check_outputs, written_whole
from ..errors import CheckpointError, OptionError
from ..planning.plan import Plan


def check_compressed_target(
    output: Path | str, *others: Path | None, inputs: Iterable[Path | str | None], force: bool
) -> Path:
    """Refuses a name that a compressed checkpoint cannot be written to, before any work is done.

    Args:
        output: the compressed checkpoint.
        others: what is written beside it.
        inputs: what is read.
        force: whether existing files may be replaced.

    Raises:
        OptionError: not a .safetensors, or as `check_outputs`.
    """
    target = Path(output)
    if target.suffix != ".safetensors":
        raise OptionError(f"{target}: a compressed checkpoint is a .safetensors file; name it so")
    check_outputs(target, *others, inputs=inputs, force=force, error=OptionError)
    return target


def write_plan(plan: Plan, path: Path, *, force: bool) -> None:
    """Writes a plan as JSON.

    Raises:
        CheckpointError: the file may not be written.
    """
    with written_whole(path, force=force, error=CheckpointError) as temporary:
        temporary.write_text(plan.to_json() + "\n", encoding="utf-8")


def check_onnx_target(output: Path | str, *, inputs: Iterable[Path | str | None], force: bool) -> Path:
    """Refuses a name that an ONNX file cannot be written to, before any work is done.

    Raises:
        OptionError: not an .onnx, it exists, its folder does not, it is no regular file, or it is one of the inputs.
    """
    target = Path(output)
    if target.suffix != ".onnx":
        raise OptionError(f"{target}: an ONNX file is named .onnx; name it so")
    check_outputs(target, inputs=inputs, force=force, error=OptionError)
    return target
