"""Low-rank compression of pretrained networks, from a module in memory to a verified ONNX file.

    import dprp
    result = dprp.compress(model, train, test, budget="macs=0.5", epochs=3)
    print(result.summary)
    result.save("out")
    result.to_onnx("small.onnx")

Beside `compress` and `load` stand the steps that they are made of, those of `dprp.converter`. Names load on first
use, as there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import converter as _converter

if TYPE_CHECKING:
    from .converter import *  # noqa: F403
    from .converter.chain.compressed import Compressed
    from .converter.chain.in_memory import compress, load

    __version__: str

__all__ = ["Compressed", "__version__", "compress", "load"]
__all__ += _converter.__all__

_IN_MEMORY = ("Compressed", "compress", "load")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("dprp")
    if name in _IN_MEMORY:
        value = getattr(importlib.import_module(".converter.chain.in_memory", __name__), name)
    elif name in _converter.__all__:
        value = getattr(_converter, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
