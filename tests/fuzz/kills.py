"""Runs that are interrupted or killed: python -m tests.fuzz.kills --times 100 [--seed 0].

`compress` and `convert` run on the digits, with --force over an older result or to a new name, and end by SIGINT or
SIGKILL at a random moment, half of them near the end, where files are put in place. After each, the older result or
the whole new one must be there; after the next run that ends well, nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import torch

from dprp.converter.chain.folder import FILES, made_by
from dprp.converter.chain.network import open_network
from dprp.converter.cli import main as dprp
from dprp.models import DIGITS_WEIGHTS

_START = ("digits_cnn", "--checkpoint", str(DIGITS_WEIGHTS), "--budget", "macs=0.5", "--force")
COMMANDS = {
    "compress": ("compress", *_START, "--data", "digits", "--epochs", "0", "--polish", "2", "-o"),
    "convert": ("convert", *_START, "--calibrate", "digits", "--calibration-images", "200", "--polish", "2", "-o"),
}


def target(folder: Path, verb: str) -> Path:
    """Where a verb writes."""
    return folder / verb / ("result" if verb == "compress" else "small.safetensors")


def start(folder: Path, verb: str) -> int:
    """A command in a process of its own, which starts with all modules loaded."""
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    code = 1
    try:
        code = dprp([*COMMANDS[verb], str(target(folder, verb))])
    except BaseException:
        code = 99
    finally:
        os._exit(code)


def seconds(folder: Path, verb: str) -> float:
    """A whole run's, which also leaves an older result."""
    began = time.monotonic()
    _, status = os.waitpid(start(folder, verb), 0)
    if status != 0:
        raise SystemExit(f"{verb} did not end well ({status})")
    return time.monotonic() - began


def content(path: Path) -> dict[str, bytes]:
    """What is at a place: nothing, one file, or a folder's files."""
    files = [path] if path.is_file() else list(path.iterdir()) if path.is_dir() else []
    return {file.name: file.read_bytes() for file in files}


def wrong(path: Path, before: dict[str, bytes]) -> str:
    """What is wrong with what a run left, or nothing."""
    now = content(path)
    if now == before:
        return ""
    if path.suffix == ".safetensors":
        with contextlib.suppress(ValueError):
            open_network(str(path))
            return ""
        return "a file that does not load"
    if now.keys() != FILES or made_by(path) != "compress":
        return f"a folder with {sorted(now)}"
    open_network(str(path / "compressed.safetensors"))
    return ""


def main() -> int:
    """1 where anything was lost or left behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = Random(options.seed)
    torch.set_num_threads(1)
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for verb in COMMANDS:
            (folder / verb).mkdir()
            with contextlib.redirect_stdout(io.StringIO()):
                whole = min(seconds(folder, verb) for _ in range(2))
            ends: Counter[str] = Counter()
            for turn in range(options.times):
                path = target(folder, verb)
                if turn % 4 == 3:  # to a new name: what is left of the older result goes
                    path.unlink() if path.is_file() else [file.unlink() for file in path.iterdir()] and path.rmdir()
                before = content(path)
                child = start(folder, verb)
                time.sleep(whole * (random.uniform(0.85, 1.1) if turn % 2 else random.uniform(0, 1)))
                kind = random.choice((signal.SIGINT, signal.SIGKILL))
                os.kill(child, kind)  # of a run that has ended, this reaches nobody
                os.waitpid(child, 0)
                trouble = wrong(path, before)
                ends["new" if content(path) != before else "older" if before else "nothing"] += 1
                if trouble:
                    bad += 1
                    print(f"{verb}, turn {turn}, {kind.name}: {trouble}", flush=True)
                if not content(path):
                    seconds(folder, verb)
            seconds(folder, verb)
            left = sorted(path.name for path in (folder / verb).iterdir())
            if left != [target(folder, verb).name]:
                bad += 1
                print(f"{verb}: left {left}")
            told = ", ".join(f"{count} times {what}" for what, count in sorted(ends.items()))
            print(f"{verb}: a run takes {whole:.1f} s; after {options.times} ends there was {told}", flush=True)
    print("nothing was lost or left behind" if not bad else f"{bad} violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
