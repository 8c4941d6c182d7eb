"""Hostile files by the thousand: python -m tests.fuzz --cases 3000 [--start 0] [--seconds-a-case 20]."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType

from .cases import Fuzzer


def main() -> int:
    """Runs the cases, a third of each kind; 1 where something was violated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--seconds-a-case", type=int, default=20, help="longer is a violation")
    options = parser.parse_args()
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, _too_long)
    violations = 0
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for kind in fuzzer.kinds:
            counts: Counter[str] = Counter()
            for case in range(options.start, options.start + options.cases // len(fuzzer.kinds)):
                signal.alarm(options.seconds_a_case)
                outcome = fuzzer.run(kind, case)
                signal.alarm(0)
                counts["violated" if outcome.violated else outcome.verdict] += 1
                if outcome.violated:
                    print(f"{kind} {case}: {outcome.verdict}", flush=True)
            violations += counts["violated"]
            print(
                f"{kind}: {counts['read']} read, {counts['refused']} refused, {counts['violated']} violated",
                flush=True,
            )
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib) / 1024
        print(f"memory grew by {grown:.0f} MiB at most")
    return 1 if violations else 0


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError("took too long")


if __name__ == "__main__":
    sys.exit(main())
