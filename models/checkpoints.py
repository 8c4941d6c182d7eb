"""Read other people's checkpoints safely, and load them all or nothing.

A `.pth` file is a pickle, and a pickle can run code: files are only ever read with `weights_only=True`.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..files import check_input, quoted, reading
from .errors import WeightsError
from .matching import check_match

PICKLE_SUFFIXES = (".pth", ".th", ".pt")
SAFETENSORS_SUFFIX = ".safetensors"
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    | {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool}
)
_LARGEST_RATIO = 10
_MOST_WRAPPERS = 8
_REFUSED_NAME = re.compile(r"GLOBAL (\S+)|Unsupported class (\S+)")
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy a checkpoint into a model; on any error the model stays as it was.

    A checkpoint without BatchNorm's `num_batches_tracked` counters is accepted, as are the auxiliary heads of
    GoogLeNet and Inception where the model was built without them.

    Args:
        model: the network to fill, in place.
        path: a file that `read_state_dict` reads.

    Raises:
        WeightsError: the file cannot be read, or its keys or shapes are not the model's.
    """
    state = read_state_dict(path)
    if getattr(model, "aux_logits", None) is False:
        heads = ("aux1.", "aux2.", "AuxLogits.")
        state = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
    check_match(path, model, state)
    model.load_state_dict(state, strict=False)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file, by the names that a plain model gives them.

    Unwraps `state_dict`, `model_state_dict` and `model`, and strips `module.` (DataParallel) and `_orig_mod.`
    (torch.compile) where all keys have it.

    Args:
        path: `.pth`, `.th` or `.pt` (read with weights_only=True, never otherwise) or `.safetensors`.

    Returns:
        Name -> tensor, on the CPU, all finite.

    Raises:
        WeightsError: the file is not there, not of a known kind, damaged, holds code, holds no tensors, holds
            values that are not finite, or is a compressed checkpoint of dprp.
    """
    path = Path(path)
    _check_file(path)
    content = _read_safetensors(path) if _suffix(path) == SAFETENSORS_SUFFIX else _read_pickle(path)
    state = _strip_prefixes(_tensors_in(path, content))
    for key, tensor in state.items():
        _check_tensor(path, key, tensor)
    return {_OLD_DENSENET_KEY.sub(r"\1\2", key): tensor for key, tensor in state.items()}


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _check_file(path: Path) -> None:
    known = ", ".join((*PICKLE_SUFFIXES, SAFETENSORS_SUFFIX))
    check_input(path, error=WeightsError, what=f"a checkpoint ({known})")
    if _suffix(path) not in (*PICKLE_SUFFIXES, SAFETENSORS_SUFFIX):
        raise WeightsError(f"{quoted(path)}: unknown kind of checkpoint {path.suffix[:20]!r}; known are {known}.")


def _read_safetensors(path: Path) -> Mapping[str, object]:
    try:
        with reading(path, error=WeightsError, remedy="copy or download it again"), safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "dprp_format" in metadata:
                raise WeightsError(
                    f"{path}: is a compressed checkpoint of dprp, with its own architecture; pass it "
                    f"as MODEL instead of as weights."
                )
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise _corrupt(path, str(error)) from error


def _check_archive(path: Path) -> None:
    """Refuses an archive that would unpack to far more than it is: torch stores tensors as they are."""
    try:
        if not zipfile.is_zipfile(path):
            return  # the older format, or something that torch will refuse
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _corrupt(path, str(error)) from error
    if unpacked > _LARGEST_RATIO * path.stat().st_size:
        raise WeightsError(
            f"{path}: {path.stat().st_size:,} bytes claim to hold {unpacked:,}; no checkpoint is packed so tightly, "
            f"so it was refused; re-save it with torch.save(model.state_dict(), path)."
        )


def _read_pickle(path: Path) -> object:
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            # torch warns about pickle protocols and TorchScript before it refuses; the refusal is enough.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _looks_like_pickle(path):
            raise _corrupt(path, "not a torch file") from error
        named = _REFUSED_NAME.search(str(error))
        what = f" ({quoted(named.group(1) or named.group(2))})" if named else ""
        raise WeightsError(
            f"{path}: the file holds code{what}, not only tensors, and was refused because reading it could "
            f"run it; where you trust it, re-save its weights with torch.save(model.state_dict(), path)."
        ) from error
    # A damaged pickle makes torch raise nearly anything: EOFError, KeyError, OSError, RuntimeError ...
    except Exception as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path}: is a TorchScript archive, which holds code; re-save its weights with "
                f"torch.save(model.state_dict(), path)."
            ) from error
        raise _corrupt(path, f"{type(error).__name__}: {error}") from error


def _looks_like_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(2)
    return head == b"PK" or head[:1] == b"\x80"


def _corrupt(path: Path, reason: str) -> WeightsError:
    first_line = quoted(reason.strip().splitlines()[0], 100).rstrip(". ")
    return WeightsError(f"{path}: the file is truncated or corrupt ({first_line}); copy or download it again.")


def _tensors_in(path: Path, content: object) -> dict[str, Tensor]:
    for _ in range(_MOST_WRAPPERS):  # a dictionary may hold itself
        if not isinstance(content, Mapping):
            break
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path}: holds a {type(content).__name__}, not a state dict; re-save it with "
            f"torch.save(model.state_dict(), path)."
        )
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        have = ", ".join(quoted(key, 40) for key in list(content)[:6]) or "nothing"
        raise WeightsError(
            f"{path}: holds no tensors, only {have}; pass a state dict, bare or under one of {', '.join(_WRAPPERS)}."
        )
    return state


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(_MOST_WRAPPERS):
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    key = quoted(name)
    if tensor.is_quantized or tensor.is_meta or tensor.layout is not torch.strided:
        raise WeightsError(
            f"{path}: {key} is quantised, sparse or without data; only plain tensors are allowed; save the "
            f"float model's state dict."
        )
    if tensor.dtype not in _DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise WeightsError(
            f"{path}: {key} is {kind}; weights are float16, bfloat16, float32 or float64, counters whole numbers; "
            f"convert it before saving."
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(
            f"{path}: {key} claims shape {tuple(tensor.shape)} on {tensor.untyped_storage().nbytes():,} bytes of "
            f"data, as expanded tensors do; save tensor.contiguous() instead."
        )
    if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
        raise WeightsError(
            f"{path}: {key} holds values that are not finite (NaN or infinity); use a checkpoint from before "
            f"the training diverged."
        )
