"""The verbs of the command line as functions on files.

    from dprp.verbs import ConvertOptions, convert
    asked = ConvertOptions(model="resnet18", checkpoint="resnet18.pth", budget="macs=0.5", output="small.safetensors")
    print(convert(asked).plan)

Each takes the options that `dprp VERB --help` shows, by their names in Python: `dataclasses.fields` lists them. Names
load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .converter.cli.benchmark import benchmark
    from .converter.cli.compress import compress
    from .converter.cli.convert import convert
    from .converter.cli.demo import demo
    from .converter.cli.env import env
    from .converter.cli.evaluate import evaluate
    from .converter.cli.export import export
    from .converter.cli.finetune import finetune
    from .converter.cli.plan import plan
    from .converter.cli.quantize import quantize
    from .converter.cli.survey import survey
    from .converter.cli.verbs import (
        BenchmarkOptions,
        CompressOptions,
        ConvertOptions,
        DemoOptions,
        EnvOptions,
        EvaluateOptions,
        ExportOptions,
        FinetuneOptions,
        PlanOptions,
        QuantizeOptions,
        SurveyOptions,
        VerifyOptions,
    )
    from .converter.cli.verify import verify

__all__ = [
    "BenchmarkOptions",
    "CompressOptions",
    "ConvertOptions",
    "DemoOptions",
    "EnvOptions",
    "EvaluateOptions",
    "ExportOptions",
    "FinetuneOptions",
    "PlanOptions",
    "QuantizeOptions",
    "SurveyOptions",
    "VerifyOptions",
    "benchmark",
    "compress",
    "convert",
    "demo",
    "env",
    "evaluate",
    "export",
    "finetune",
    "plan",
    "quantize",
    "survey",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "verbs" if name.endswith("Options") else name
    value = getattr(importlib.import_module(f"dprp.converter.cli.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
