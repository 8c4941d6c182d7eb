"""A compressed network as one file, and back.

Takes a converted network and where it came from; gives a safetensors file, and bit-equal outputs when it is read.
Believes nothing in a file that it can count itself.
"""

from .checkpoint import Loaded, is_compressed, load_compressed, save_compressed
from .source import Source

__all__ = [
    "Loaded",
    "Source",
    "is_compressed",
    "load_compressed",
    "save_compressed",
]
