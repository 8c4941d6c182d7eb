"""What a run did: a file of one line a step."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from ...files import quoted, written_whole
from ..errors import ConverterWarning, TrainingError
from .record import Step


class History:
    """The steps of a run.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def tell(self, step: Step) -> None:
        """Adds a step."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(step.to_dict()) + "\n")
        except OSError as error:
            warnings.warn(
                f"{quoted(self.path)}: cannot be written ({error.strerror}); training goes on",
                ConverterWarning,
                stacklevel=3,
            )

    def steps(self) -> list[Step]:
        """All so far; lines that were cut short are left out."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                found.append(Step.from_dict(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def rewind(self, step: int) -> None:
        """Forgets later steps."""
        kept = [json.dumps(one.to_dict()) + "\n" for one in self.steps() if one.step <= step]
        with written_whole(self.path, force=True, error=TrainingError) as file:
            file.write_text("".join(kept), encoding="utf-8")
