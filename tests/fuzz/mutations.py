"""What can go wrong with a file: bytes that change, and values that somebody wrote on purpose."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "3",
    "x" * 5000,
    "\x1b[31mred\n",
    "\ud800",
    "../../etc/passwd",
    "os:abort",
    [],
    [[]] * 50,
    [0] * 20_000,
    {},
    {"": {"": {}}},
)


def changed_bytes(content: bytes, random: Random) -> bytes:
    """The content with one to three accidents in it, half of them near the start, where headers are."""
    for _ in range(random.randint(1, 3)):
        if not content:
            break
        end = len(content) if random.random() < 0.5 else min(len(content), 400)
        start = random.randrange(end)
        length = min(random.choice((1, 1, 2, 8, 64, 4096)), len(content) - start)
        content = random.choice(_ACCIDENTS)(content, start, length, random)
    return content


def _flip(content: bytes, start: int, length: int, random: Random) -> bytes:
    flipped = bytes(byte ^ (1 << random.randrange(8)) for byte in content[start : start + length])
    return content[:start] + flipped + content[start + length :]


_ACCIDENTS: tuple[Callable[[bytes, int, int, Random], bytes], ...] = (
    _flip,
    _flip,
    lambda content, start, length, random: content[:start] + random.randbytes(length) + content[start + length :],
    lambda content, start, length, random: content[:start] + b"\xff" * length + content[start + length :],
    lambda content, start, length, random: content[:start] + content[start + length :],
    lambda content, start, length, random: content[: start + length] + content[start:],
    lambda content, start, length, random: content[:start],
)


def changed_json(text: str, random: Random) -> str:
    """The document with one to three values replaced, removed or doubled."""
    document = json.loads(text)
    for _ in range(random.randint(1, 3)):
        places = list(_places(document))
        if not places:
            break
        holder, key = random.choice(places)
        action = random.randrange(4)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.extend([copy.deepcopy(holder[key])] * random.choice((1, 1, 300)))
        elif action == 2 and isinstance(holder[key], int):
            holder[key] = int(holder[key]) + random.choice((-1, 1, 1000, -(2**40), 2**40))
        else:
            holder[key] = copy.deepcopy(random.choice(HOSTILE))
    if random.random() < 0.02:
        return "[" * 100_000
    return json.dumps(document)


def _places(value: Any) -> Any:
    """Every (holder, key) of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(items):
        yield value, key
        yield from _places(below)
