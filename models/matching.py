"""Whether a state dict fits a model, and a readable account of why not."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from ..files import quoted
from .errors import WeightsError

SHOWN = 6
"""Keys named in one list of an error; the rest are counted."""


def check_match(path: str | Path, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Refuse a state dict whose keys or shapes are not the model's.

    Args:
        path: the file that the state dict came from, for the message.
        model: only looked at.
        state: name -> tensor.

    Raises:
        WeightsError: keys missing, unexpected or of another shape; `num_batches_tracked` may be missing.
    """
    wanted = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    wrong = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    if not (missing or unexpected or wrong):
        return
    if not (missing or unexpected) and (classes := _classes_of_other_head(wrong, state, wanted)):
        here = wanted[wrong[0]].shape[0]
        raise WeightsError(
            f"{path}: the checkpoint has {classes} classes, the model {here} "
            f"({_describe_shapes(wrong, state, wanted)}); pass classes={classes} / --classes {classes}."
        )
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_capped(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_capped(quoted(key, 100) for key in unexpected)})")
    if wrong:
        parts.append(f"{len(wrong)} of another shape ({_describe_shapes(wrong, state, wanted)})")
    raise WeightsError(
        f"{path}: the checkpoint does not fit the model, of whose {len(wanted)} keys there are "
        f"{', '.join(parts)}; pass the architecture that the checkpoint was made with."
    )


def _classes_of_other_head(wrong: list[str], state: dict[str, Tensor], wanted: dict[str, Tensor]) -> int | None:
    """Outputs of the checkpoint's head, if one layer's number of outputs is all that differs."""
    if len({key.rpartition(".")[0] for key in wrong}) != 1:
        return None
    if any(
        0 in (state[key].dim(), wanted[key].dim()) or state[key].shape[1:] != wanted[key].shape[1:] for key in wrong
    ):
        return None
    outputs = {state[key].shape[0] for key in wrong}
    return outputs.pop() if len(outputs) == 1 else None


def _describe_shapes(keys: list[str], state: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    return _capped(f"{key}: {_shape(state[key])} in the file, {_shape(wanted[key])} in the model" for key in keys)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a scalar"


def _capped(items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
