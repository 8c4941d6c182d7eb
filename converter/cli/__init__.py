"""The command line `dprp`.

Each verb is a plain function of its options as well: `from dprp.verbs import ConvertOptions, convert`.
"""

from .app import main

__all__ = ["main"]
