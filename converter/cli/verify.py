"""`dprp verify`: whether an ONNX file computes what its network computes, and which layer does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...export import (
    LayerDifference,
    Verification,
    first_difference,
    is_half,
    is_quantized,
    layer_differences,
)
from ...export import verify as verify_file
from ..chain.data import Batches, open_data
from ..chain.device import pick_device
from ..chain.exporting import plain_network
from ..chain.network import Network
from ..errors import OptionError
from .asked import asked_network
from .verbs import VerifyOptions

_TOLERANCES, _HALF, _QUANTIZED = (1e-4, 1e-3), (1e-2, 2e-2), (0.25, 0.5)
"""Of outputs and of layers; those of float16; and those of 8 bits, whose roundings add up from layer to layer."""

_BATCHES = [8, 1, 2, 5]
"""Images in each; layers are compared on the first."""


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    Attributes:
        file: that was compared.
        outputs: how far it is from the network.
        layers: how many layers were compared inside.
        first: the first of them that differs, or None.
    """

    file: str
    outputs: Verification
    layers: int
    first: LayerDifference | None

    @property
    def exit_code(self) -> int:
        """0 where all agree, else 1."""
        return 0 if self.outputs.ok and self.first is None else 1

    def __str__(self) -> str:
        if self.first is not None:
            inside = f"the first of {self.layers} layers that differs is {self.first}"
        elif not self.layers:
            inside = "its nodes do not say which layers they are; files of dprp export do"
        elif self.outputs.ok:
            inside = f"all of {self.layers} layers agree"
        else:
            inside = f"all of {self.layers} layers agree; what stands between them or behind does not"
        return f"{self.file}: {self.outputs}\n{inside}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        first = None if self.first is None else asdict(self.first)
        return {
            "file": self.file,
            "ok": self.exit_code == 0,
            **asdict(self.outputs),
            "layers": self.layers,
            "first_different_layer": first,
        }


def verify(asked: VerifyOptions) -> Verified:
    """Compares a file with its network, on batches of several sizes.

    Raises:
        ConverterError, ModelsError, ExportError: one sentence each.
    """
    where = pick_device(asked.device)
    if asked.file.suffix.lower() != ".onnx":
        raise OptionError(f"{asked.file}: is no .onnx file; give the network first, then its ONNX file")
    quantised = is_quantized(asked.file)
    if quantised and asked.data is None:
        raise OptionError(f"{asked.file}: its 8 bits clip what real images never reached; give some by --data")
    network = asked_network(asked, seed=asked.seed, trust=asked.trust)
    plain = plain_network(network, network.example(4), device=where)
    batches = list(_batches(asked, network))
    usual = _QUANTIZED if quantised else _HALF if is_half(asked.file) else _TOLERANCES
    tolerance = usual[0] if asked.tolerance is None else asked.tolerance
    inner = usual[1] if asked.layer_tolerance is None else asked.layer_tolerance
    outputs = verify_file(plain, asked.file, batches, tolerance=tolerance)
    found = layer_differences(plain, asked.file, batches[0])
    return Verified(str(asked.file), outputs, len(found), first_difference(found, inner))


def _batches(asked: VerifyOptions, network: Network) -> Iterator[Tensor]:
    if asked.data is None:
        noise = network.example(sum(_BATCHES))
        assert isinstance(noise, Tensor)
        yield from torch.split(noise, _BATCHES)
        return
    images = open_data(asked.data, network.classes(), download=asked.download)
    loader = Batches(images, network.preprocess, max(_BATCHES), asked.seed, 0).test(sum(_BATCHES))
    found = torch.cat([batch for batch, _ in loader])
    yield from torch.split(found, _BATCHES if len(found) == sum(_BATCHES) else max(_BATCHES))
