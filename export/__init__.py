"""ONNX files from torch models: exported, verified, scored and timed.

Names load on first use: the processes that measure latency and memory import this package too, and must not
pay for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accuracy import Accuracy, AnsweredBy, evaluate_onnx
    from .benchmarking import benchmark
    from .cpu_targets import Recipe, Target, recipe_for, this_cpu
    from .errors import BenchmarkError, DataError, ExportError, ModelFileError, VerificationError
    from .exporter import to_onnx
    from .float_nodes import Search, nodes_by_error, quantize_within
    from .half import is_half
    from .latency_table import LatencyTable
    from .layerwise import LayerDifference, first_difference, layer_differences
    from .modelfile import read_metadata
    from .network_time import NetworkTime, network_ms, time_network
    from .nodes import onnx_macs, op_counts
    from .plain_layer import PlainLayer
    from .quantization import Quantization, Ranges, is_quantized, quantize
    from .report import BenchmarkResult, Environment, FileResult
    from .verification import Verification, verify

__all__ = [
    "Accuracy",
    "AnsweredBy",
    "BenchmarkError",
    "BenchmarkResult",
    "DataError",
    "Environment",
    "ExportError",
    "FileResult",
    "LatencyTable",
    "LayerDifference",
    "ModelFileError",
    "NetworkTime",
    "PlainLayer",
    "Quantization",
    "Ranges",
    "Recipe",
    "Search",
    "Target",
    "Verification",
    "VerificationError",
    "benchmark",
    "evaluate_onnx",
    "first_difference",
    "is_half",
    "is_quantized",
    "layer_differences",
    "network_ms",
    "nodes_by_error",
    "onnx_macs",
    "op_counts",
    "quantize",
    "quantize_within",
    "read_metadata",
    "recipe_for",
    "this_cpu",
    "time_network",
    "to_onnx",
    "verify",
]

_HOMES = {
    "accuracy": ("Accuracy", "AnsweredBy", "evaluate_onnx"),
    "benchmarking": ("benchmark",),
    "cpu_targets": ("Recipe", "Target", "recipe_for", "this_cpu"),
    "errors": ("BenchmarkError", "DataError", "ExportError", "ModelFileError", "VerificationError"),
    "exporter": ("to_onnx",),
    "float_nodes": ("Search", "nodes_by_error", "quantize_within"),
    "half": ("is_half",),
    "latency_table": ("LatencyTable",),
    "layerwise": ("LayerDifference", "first_difference", "layer_differences"),
    "modelfile": ("read_metadata",),
    "network_time": ("NetworkTime", "network_ms", "time_network"),
    "nodes": ("onnx_macs", "op_counts"),
    "plain_layer": ("PlainLayer",),
    "quantization": ("Quantization", "Ranges", "is_quantized", "quantize"),
    "report": ("BenchmarkResult", "Environment", "FileResult"),
    "verification": ("Verification", "verify"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
