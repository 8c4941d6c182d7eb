"""The folder of a run: what it needs to go on after an interruption, and what it did.

    config.json     the settings, and a fingerprint of the data
    plan.json       ranks at the start
    history.jsonl   one line a step
    recipe.yaml     on the command line, its options
    ranks.png       at its end: how the ranks fell, and the metric against the MACs
    tracked/        with log="tensorboard", what TensorBoard reads
    moments.pt      what cuts weigh errors by, where the run was given it
    state.pt        where the run is: tensors and numbers, read with weights_only
    before.pt       the state before that, should the last one not read

Each file is written under a temporary name, synced and renamed: a kill at any moment leaves the older or the new one.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ...files import quoted, reading, written_whole
from ...files.leftovers import held, in_use, synced
from ..analysis.calibration import Moments
from ..errors import ConverterWarning, TrainingError
from ..lowrank.forms import Form
from ..planning.plan import Plan
from .history import History
from .picture import draw, save
from .record import Step
from .trackers import check_tracker

CONFIG = "config.json"
PLAN = "plan.json"
HISTORY = "history.jsonl"
STATE = "state.pt"
BEFORE = "before.pt"
MOMENTS = "moments.pt"
PICTURE = "ranks.png"
TRACKED = "tracked"
FORMAT = "1"
_LARGEST_CONFIG = 2**20

# Of the time, saving takes at most this part; between epochs it does not happen more often than that.
_SHARE = 0.01
_SECONDS = 10.0


class RunFolder:
    """A run's folder: a new one, or one to go on from.

    Args:
        path: of the folder, which need not be there yet; its parent must.
        resume: go on from what is there.
        every: save after so many steps; None for as often as takes 1 % of the time, and after each epoch.
        force: replace what another run left there.
        texts: what else to keep in a new one, by file name.
        log: a tracker of Accelerate's that is told of every step as well, `tensorboard` or `wandb`.

    Raises:
        TrainingError: the tracker is not installed, there is something in the way, or nothing to go on from.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        resume: bool = False,
        every: int | None = None,
        force: bool = False,
        texts: Mapping[str, str] | None = None,
        log: str | None = None,
    ) -> None:
        self.path = Path(path)
        self._history = History(self.path / HISTORY)
        self._resume = resume
        self._every = every
        self._texts = dict(texts or {})
        self.log = log
        check_tracker(log)
        self._saved_at = time.monotonic()
        self._took = 0.0
        self._refused = ""
        if every is not None and every < 1:
            raise TrainingError(f"saving every {every} steps is not possible; give 1 or more")
        if resume:
            self._check_old()
        else:
            self._check_new(force)

    @property
    def resumes(self) -> bool:
        """Whether there is a run to go on from."""
        return self._resume

    @property
    def begun(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.path / STATE).exists() or (self.path / BEFORE).exists()

    @contextmanager
    def opened(self, about: Mapping[str, Any], plan: str, moments: Moments | None = None) -> Iterator[None]:
        """Keeps other runs out for as long as the block runs.

        Args:
            about: settings and fingerprints, plain JSON values; those of a run that goes on must be the same.
            plan: JSON, of the start.
            moments: to keep, of a run that begins.

        Raises:
            TrainingError: another run is in there, this one was begun otherwise, or the disk refuses.
        """
        if self._resume:
            self._compare(about)
        else:
            self._begin(about, plan, moments)
        if in_use(self.path):
            raise TrainingError(
                f"{quoted(self.path)}: another run is using it; wait for its end, or give another one"
            )
        with held(self.path):
            yield

    def due(self, steps: int, *, epoch_over: bool) -> bool:
        """Whether to save now.

        Args:
            steps: made since the last time.
            epoch_over: whether an epoch has just ended.
        """
        if self._every is not None:
            return steps >= self._every
        since = time.monotonic() - self._saved_at
        return since > self._took / _SHARE and (epoch_over or since > _SECONDS)

    def save(self, state: dict[str, Any]) -> None:
        """Writes a state; where the disk refuses, says so and keeps the one before."""
        began = time.monotonic()
        try:
            synced(self.path / HISTORY)
            with written_whole(self.path / STATE, force=True, error=TrainingError) as temporary:
                with temporary.open("wb") as file:
                    torch.save(state, file)
                synced(temporary)
                if (self.path / STATE).exists():
                    (self.path / STATE).replace(self.path / BEFORE)
            self._refused = ""
        except (TrainingError, RuntimeError) as error:  # torch's word for a full disk, which is what it came from
            why = str(error.__context__ if isinstance(error.__context__, OSError) else error)
            if why != self._refused:  # said once
                warnings.warn(
                    f"the run could not be saved ({quoted(why)}); it goes on, and what was saved before is kept",
                    ConverterWarning,
                    stacklevel=2,
                )
            self._refused = why
        self._saved_at = time.monotonic()
        self._took = self._saved_at - began

    def load(self) -> dict[str, Any]:
        """The last state that reads.

        Raises:
            TrainingError: there is none.
        """
        for name in (STATE, BEFORE):
            path = self.path / name
            if not path.is_file():
                continue
            try:
                state = _loaded(path)
            except TrainingError as error:
                warnings.warn(f"{error}; going on from the one before", ConverterWarning, stacklevel=2)
                continue
            if isinstance(state, dict) and state.get("format") == FORMAT:
                return dict(state)
        raise TrainingError(f"{quoted(self.path)}: has no state that reads; begin anew with --force")

    def moments(self) -> Moments | None:
        """Those that the run began with: what is measured anew may differ in its last bits, and ranks with it.

        Raises:
            TrainingError: they do not read.
        """
        path = self.path / MOMENTS
        if not path.is_file():
            return None
        return {(name, Form(form)): moment for name, form, moment in _loaded(path, "; begin anew with --force")}

    def tell(self, step: Step) -> None:
        """Adds a step to the history."""
        self._history.tell(step)

    def history(self) -> list[Step]:
        """All steps so far; lines that were cut short are left out."""
        return self._history.steps()

    def rewind(self, step: int) -> None:
        """Forgets what the history says of later steps."""
        self._history.rewind(step)

    def finish(self, metric: str = "top-1 in %") -> None:
        """The result is safe elsewhere: drops the states, and leaves the record with a picture of it.

        Args:
            metric: its name in the picture.
        """
        for name in (STATE, BEFORE, MOMENTS):
            (self.path / name).unlink(missing_ok=True)
        steps = self.history()
        if not steps:
            return
        try:
            with written_whole(self.path / PICTURE, force=True, error=TrainingError) as file:
                save(draw(steps, self._ranks(), metric), file)
        except TrainingError as error:  # the result is there all the same
            warnings.warn(f"the run has no picture ({quoted(error)})", ConverterWarning, stacklevel=2)

    def plan(self) -> Plan:
        """Of the network that the run began with.

        Raises:
            TrainingError: it does not read.
        """
        path = self.path / PLAN
        with reading(path, error=TrainingError, remedy="begin the run anew"):
            return Plan.from_json(path.read_text(encoding="utf-8"))

    def _ranks(self) -> dict[str, int]:
        return {name: layer.rank or 0 for name, layer in self.plan().factored.items()}

    def _begin(self, about: Mapping[str, Any], plan: str, moments: Moments | None) -> None:
        try:
            self.path.mkdir(exist_ok=True)
            for name in (STATE, BEFORE, MOMENTS):  # of a run that is to be replaced; other people's files stay
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(f"{quoted(self.path)}: cannot be written ({error.strerror})") from error
        self._write(CONFIG, json.dumps({"dprp_run": FORMAT, **about}, indent=1) + "\n")  # marks the folder as ours
        for name, text in {**self._texts, PLAN: plan + "\n", HISTORY: ""}.items():
            self._write(name, text)
        if moments is not None:
            with written_whole(self.path / MOMENTS, force=True, error=TrainingError) as file:
                torch.save([(name, form.value, moment) for (name, form), moment in moments.items()], file)

    def _compare(self, about: Mapping[str, Any]) -> None:
        before = self._about()
        for name, value in about.items():
            if before.get(name) != value:
                raise TrainingError(
                    f"{quoted(self.path)}: its {name} was {quoted(before.get(name))}, now it is {quoted(value)}; "
                    "go on with what it was begun with, or begin anew with --force"
                )

    def _about(self) -> dict[str, Any]:
        path = self.path / CONFIG
        try:
            if path.stat().st_size > _LARGEST_CONFIG:
                raise ValueError("it is too long")
            about = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(about, dict) or about.get("dprp_run") != FORMAT:
                raise ValueError("it is not a run of this dprp")
        except (OSError, ValueError, RecursionError) as error:
            raise TrainingError(
                f"{quoted(self.path)}: is no folder of a run ({CONFIG}: {quoted(error)}); give one that is"
            ) from error
        return about

    def _check_old(self) -> None:
        self._about()
        if not self.begun:
            raise TrainingError(
                f"{quoted(self.path)}: has no state to go on from: its run has ended, or did not begin; begin anew"
            )

    def _check_new(self, force: bool) -> None:
        if not self.path.parent.is_dir():
            raise TrainingError(f"{quoted(self.path)}: the folder around it does not exist; make it first")
        if not self.path.exists() or (self.path.is_dir() and all(map(_is_leftover, self.path.iterdir()))):
            return
        self._about()  # which refuses a folder that is not ours
        if not force:
            what = "exists already; give another one"
            if self.begun:
                what = "holds a run that has not ended; go on with --resume (resume=True)"
            raise TrainingError(f"{quoted(self.path)}: {what}, or pass --force (force=True) to begin anew")
        if in_use(self.path):
            raise TrainingError(f"{quoted(self.path)}: another run is using it; wait for its end")

    def _write(self, name: str, text: str) -> None:
        with written_whole(self.path / name, force=True, error=TrainingError) as file:
            file.write_text(text, encoding="utf-8")


def _is_leftover(path: Path) -> bool:
    """Whether a file is what a run left that was killed before it had begun."""
    return path.name.startswith(f".{CONFIG}.dprp-")


def _loaded(path: Path, remedy: str = "") -> Any:
    """Tensors and plain values.

    Raises:
        TrainingError: the file does not read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, UnpicklingError, EOFError) as error:
        raise TrainingError(f"{quoted(path)}: does not read ({quoted(error)}){remedy}") from error
