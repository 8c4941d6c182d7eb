"""One figure that changes with every bit of a compressed checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of the tensors with their names, types and shapes, and of what is said about them."""
    sha = hashlib.sha256()
    for name, text in sorted(about.items()):
        sha.update(json.dumps([name, text]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
