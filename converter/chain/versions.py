"""Versions of what a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Name -> version, ours first."""
    packages = ("torch", "torchvision", "onnx", "onnxruntime")
    return {
        "dprp": version("dprp"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
