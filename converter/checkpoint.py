"""A compressed checkpoint: one safetensors file with the tensors, how to build the network, and the plan.

Its string metadata holds
    dprp_format   version of this layout
    source        JSON: model name, classes, input shape, mean and std of the inputs
    plan          the plan as JSON
    tied          JSON: name of each tensor stored under another name
Loading builds the plain network, makes room for the plan's factors and fills in the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import quoted, written_whole
from .conversion import plan_of, restructure
from .errors import CheckpointError, PlanError
from .plan import Plan

FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Source:
    """How to build the plain network, and what it eats.

    Attributes:
        model: a name that the builder knows, or `package.module:function`.
        classes: number of outputs, None for the model's own.
        input_shape: (C, H, W).
        mean, std: per channel, of inputs scaled to 0..1.
    """

    model: str
    classes: int | None
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Source:
        """Reads what `to_json` wrote."""
        values = json.loads(text)
        return cls(
            str(values["model"]),
            None if values["classes"] is None else int(values["classes"]),
            tuple(int(n) for n in values["input_shape"]),
            tuple(float(n) for n in values["mean"]),
            tuple(float(n) for n in values["std"]),
        )


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
    metadata = {
        "dprp_format": FORMAT_VERSION,
        "source": source.to_json(),
        "plan": plan.to_json(),
        "tied": json.dumps(tied),
    }
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
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            source, plan, tied = _read_metadata(path, metadata)
            _check_source(path, source, trust)
            network = _fit(path, build(source), plan)
            _check_layout(path, network, file, tied)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: does not read as safetensors ({error}); the file is damaged") from error
    _check_values(path, network, tensors)
    network.load_state_dict(tensors | {name: tensors[stored] for name, stored in tied.items()})
    return Loaded(network.eval(), source, plan)


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


def _read_metadata(path: Path, metadata: dict[str, str]) -> tuple[Source, Plan, dict[str, str]]:
    version = metadata.get("dprp_format")
    if version is None:
        raise CheckpointError(
            f"{path}: is a plain safetensors file; pass it as --checkpoint with the name of its model"
        )
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: has format {version}, this dprp reads {FORMAT_VERSION}; upgrade dprp")
    try:
        tied = json.loads(metadata["tied"])
        if not isinstance(tied, dict):
            raise TypeError("tied is not a map")
        return Source.from_json(metadata["source"]), Plan.from_json(metadata["plan"]), tied
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata does not read ({error}); write the file anew") from error


def _check_source(path: Path, source: Source, trust: str | None) -> None:
    """Refuses to let a file name the code that builds it."""
    if ":" in source.model and source.model != trust:
        named = f"not {trust[:200]}" if trust else "which would be imported and called"
        raise CheckpointError(
            f"{path}: its network is built by {source.model[:200]}, {named}; if that is a function you know, say so "
            f"with --trust {source.model[:200]} (trust= in Python)"
        )


def _fit(path: Path, network: nn.Module, plan: Plan) -> nn.Module:
    try:
        return restructure(network, plan)
    except PlanError as error:
        raise CheckpointError(f"{path}: its plan does not fit its network ({error})") from error


def _check_layout(path: Path, network: nn.Module, file: Any, tied: dict[str, str]) -> None:
    """Names and shapes, before any tensor is read."""
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    found |= {name: found.get(stored) for name, stored in tied.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{path}: {name} is {found.get(name, 'missing')}, the network has {expected.get(name, 'no such tensor')}"
            f" ({len(wrong)} such in all); the file is damaged or its model has changed"
        )
