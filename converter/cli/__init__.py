"""The command line `dprp`.

Each verb is a plain function as well, for instance `from dprp.converter.cli.compress import compress`.
"""

from .app import main

__all__ = ["main"]
