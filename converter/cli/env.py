"""`dprp env`: what a bug report needs to say of the machine."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import onnxruntime
import torch

from ...export.benchmarking import cpu_name
from ..chain.versions import versions
from .verbs import EnvOptions


@dataclass(frozen=True)
class Env:
    """The machine, and what is installed.

    Attributes:
        versions: of dprp and what it stands on.
        system: kernel and architecture.
        cpu: its name.
        cpu_features: the widest instructions that torch uses, such as AVX2.
        cores: that this process may run on.
        threads: that torch computes with.
        gpus: that torch can use, with their memory.
        providers: where ONNX Runtime can compute.
    """

    versions: dict[str, str]
    system: str
    cpu: str
    cpu_features: str
    cores: int
    threads: int
    gpus: tuple[str, ...]
    providers: tuple[str, ...]

    def __str__(self) -> str:
        lines = {
            **self.versions,
            "system": self.system,
            "cpu": f"{self.cpu}, {self.cpu_features}, {self.cores} cores, {self.threads} threads",
            "gpu": ", ".join(self.gpus) or "none that torch can use",
            "onnx runtime on": ", ".join(self.providers),
        }
        width = max(map(len, lines))
        return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "gpus": list(self.gpus), "providers": list(self.providers)}


def env(_asked: EnvOptions) -> Env:
    """Looks at the machine."""
    gpus = tuple(_gpu(index) for index in range(torch.cuda.device_count())) if torch.cuda.is_available() else ()
    return Env(
        versions(),
        f"{platform.system()} {platform.release()}, {platform.machine()}",
        cpu_name(),
        torch.backends.cpu.get_cpu_capability(),
        _cores(),
        torch.get_num_threads(),
        gpus,
        tuple(onnxruntime.get_available_providers()),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
