"""A compressed checkpoint: one safetensors file with the tensors, how to build the network, and the plan.

Its string metadata holds
    dprp_format   version of this layout
    source        JSON: model name, classes, input shape, mean and std of the inputs
    plan          the plan as JSON
    tied          JSON: name of each tensor stored under another name
    sha256        of the tensors and of the three texts above; from format 2 on
Loading builds the plain network without memory, makes room for the plan's factors, compares, and only then reads the
tensors. Nothing in the file is believed that can be counted anew.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...files import check_input, quoted, reading, written_whole
from ..conversion.attached import plan_of
from ..conversion.replacing import restructure
from ..errors import CheckpointError, PlanError
from ..planning.plan import Plan
from .digest import digest
from .header import Header, check_layout, read_header
from .sketch import can_be_filled, fill, without_memory
from .source import Source

FORMAT_VERSION = "2"


@dataclass(frozen=True)
class Loaded:
    """A compressed network, where it came from, and its plan."""

    model: nn.Module
    source: Source
    plan: Plan


def save_compressed(model: nn.Module, source: Source, path: str | Path, *, force: bool = False) -> None:
    """Writes a converted network as one safetensors file.

    Args:
        model: what `convert` or `finetune` gave.
        source: how to build the plain network.
        path: ends in .safetensors.
        force: write over an existing file.

    Raises:
        CheckpointError: the file exists or cannot be written, or a weight is not finite. Nothing has been changed
            then.
        PlanError: the model was not converted.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a compressed checkpoint is a .safetensors file; name it so")
    plan = plan_of(model)
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first_name: dict[int, str] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name} is a {type(tensor).__name__}; only tensors can be stored")
        if id(tensor) in first_name:
            tied[name] = first_name[id(tensor)]
            continue
        first_name[id(tensor)] = name
        stored = tensor.detach().cpu().contiguous()
        storage = stored.untyped_storage().data_ptr()
        # A view of another tensor is stored whole: safetensors takes no memory twice.
        tensors[name] = stored.clone() if storage in storages else stored
        storages.add(storage)
    _check_values(path, model, tensors)
    about = {"source": source.to_json(), "plan": plan.to_json(), "tied": json.dumps(tied)}
    metadata = {"dprp_format": FORMAT_VERSION, **about, "sha256": digest(tensors, about)}
    with written_whole(path, force=force, error=CheckpointError) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # its word for a full disk
            raise CheckpointError(f"{path}: cannot be written ({quoted(error)}); nothing was changed") from error


def is_compressed(path: str | Path) -> bool:
    """Whether a file is a compressed checkpoint of ours (a plain safetensors file is not)."""
    if not Path(path).is_file():  # a FIFO would be waited for
        return False
    try:
        with safe_open(path, "pt") as file:
            return "dprp_format" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_compressed(path: str | Path, build: Callable[[Source], nn.Module], *, trust: str | None = None) -> Loaded:
    """Reads a compressed checkpoint.

    Args:
        path: what `save_compressed` wrote.
        build: makes the plain network from its source.
        trust: the `package.module:function` that the file may name as its source. A file cannot choose what is
            imported and called: one that names a function is read only when its reader names the same.

    Returns:
        The network in eval mode on the CPU, with bit-equal outputs.

    Raises:
        CheckpointError: no such file, not ours, a newer format, it does not fit the network, or it names a function
            that the caller did not.
    """
    path = Path(path)
    check_input(path, error=CheckpointError, what="a compressed .safetensors")
    with _opened(path) as file:
        header = read_header(path, file)
        _check_source(path, header.source, trust)
        network, sketched = _room(path, build, header)
        with reading(path, error=CheckpointError):
            tensors = {name: file.get_tensor(name) for name in header.layout}
        _check_digest(path, header.metadata, tensors)
        _check_values(path, network, tensors)
        tensors |= {name: tensors[stored] for name, stored in header.tied.items()}
        if sketched:
            fill(network, tensors)
        else:
            network.load_state_dict(tensors)
    return Loaded(network.eval(), header.source, plan_of(network))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{quoted(path)}: does not read as safetensors ({quoted(error)}); the file is damaged"
        ) from error


def _check_digest(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    if metadata["dprp_format"] == "1":
        return
    if digest(tensors, {name: metadata[name] for name in ("source", "plan", "tied")}) != metadata.get("sha256"):
        raise CheckpointError(
            f"{quoted(path)}: its content is not what was written (its SHA-256 differs); the file is damaged"
        )


def _check_values(path: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights and statistics that are not finite; other buffers may hold infinities, as masks do."""
    statistics = {
        f"{name}.{kind}" if name else kind
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for kind in ("running_mean", "running_var")
    }
    trained = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        bad = ~tensor.isfinite() if name in trained | statistics else tensor.isnan()
        if bool(bad.any()):
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite; repair the network it came from and write the "
                "file anew"
            )


def _check_source(path: Path, source: Source, trust: str | None) -> None:
    """Refuses to let a file name the code that builds it."""
    if ":" in source.model and source.model != trust:
        named = f"not {trust[:200]}" if trust else "which would be imported and called"
        raise CheckpointError(
            f"{path}: its network is built by {source.model[:200]}, {named}; if that is a function you know, say so "
            f"with --trust {source.model[:200]} (trust= in Python)"
        )


def _room(path: Path, build: Callable[[Source], nn.Module], header: Header) -> tuple[nn.Module, bool]:
    """The network with room for the file's tensors, compared with them; and whether it takes no memory yet.

    A function of the user's may compute with the weights that it makes, so that it is run as it is meant to.
    """
    if ":" not in header.source.model and not header.tied:
        with contextlib.suppress(RuntimeError), without_memory():  # such a network computes with its weights, too
            network = _restructured(path, build, header)
            check_layout(path, network, header)
            if can_be_filled(network):
                return network, True
    network = _restructured(path, build, header)
    check_layout(path, network, header)
    return network, False


def _restructured(path: Path, build: Callable[[Source], nn.Module], header: Header) -> nn.Module:
    try:
        network = build(header.source)
    except ValueError as error:
        raise CheckpointError(
            f"{quoted(path)}: its network cannot be built ({quoted(error)}); check the file"
        ) from error
    try:
        return restructure(network, header.plan)
    except PlanError as error:
        raise CheckpointError(f"{quoted(path)}: its plan does not fit its network ({quoted(error)})") from error
