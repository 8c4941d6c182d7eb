"""One run of fine-tuning: its steps, in order, and where it is.

A step: draw, move, cut, record, save.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sized
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..analysis.accuracy import Batches
from ..analysis.calibration import Moments
from ..analysis.running import copied, finite
from ..conversion.attached import plan_of, relabel
from ..errors import ConverterWarning, TrainingError
from ..lowrank.costs import Unit
from .average import Average
from .batches import Batch, Draws
from .config import FinetuneConfig
from .cuts import Cuts, told
from .interrupts import Interrupts
from .keeping import InMemory, Keeper
from .mover import Mover, norms_of
from .objective import Loss, Losses, Objective
from .optimizers import optimizer_for, rate_at
from .pruner import RankPruner
from .random_numbers import put_random_state, random_state
from .record import Cut, Step
from .run_folder import FORMAT
from .scores import Scores
from .state import network_state, put_network_state
from .together import Together
from .trackers import track

_PATIENCE = 3
"""Steps in a row that may not be finite."""
_MOST_HALVINGS = 5


class Run:
    """One run: the network, what moves it, and where it is."""

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        config: FinetuneConfig,
        accelerator: Accelerator,
        together: Together,
        teacher: nn.Module | None,
        moments: Moments | None,
        loss: Loss | None,
        scores: Scores,
        keeper: Keeper | None,
    ) -> None:
        if not isinstance(train, Sized) or len(train) == 0:
            raise TrainingError("the training data has no batches or no length; give a DataLoader with images")
        plan = plan_of(model)
        device = accelerator.device
        self._config = config
        self._accelerator = accelerator
        self._student = copied(model).to(device)
        plain = optimizer_for(self._student, config)
        placed = None if moments is None else {key: moment.to(device) for key, moment in moments.items()}
        pruner = RankPruner(self._student, plan, plain, rank_multiple=config.rank_multiple, moments=placed)
        if config.budget is not None:
            pruner.check(config.budget)
        self._plain = plain
        self._together = together
        loader = together.share(train, even=True)
        self._draws = Draws(
            loader,
            device,
            seed=config.seed,
            layout=torch.channels_last if config.channels_last else torch.contiguous_format,
            normalised=any(True for _ in norms_of(self._student)),
            together=together,
        )
        self._total = config.epochs * -(-len(loader) // config.accumulate)
        self._cuts = Cuts(pruner, plan, config, self._total)
        self._average = Average(self._student, config.average)
        if teacher is not None and (config.distill > 0 or config.matching > 0):
            teacher = copied(teacher).to(device).eval().requires_grad_(False)
        else:
            teacher = None
        self._layers = pruner.layers
        self._objective = Objective(self._student, teacher, config, loss, self._layers)
        self._mover = Mover(
            self._student, self._objective, config, plain, accelerator, together, self._cuts, self._average,
            norms=_trains_norms(config, teacher),
        )  # fmt: skip
        self._count()
        self._keeper: Keeper = keeper or InMemory()
        self._epoch, self._made, self._step, self._saved = 1, 0, 0, 0
        self._bad, self._halvings = 0, 0
        self._scores = scores

    def begin(self, *, resume: bool) -> None:
        """Starts from the beginning, or from what was kept."""
        together = self._together
        if not resume and not self._is_sound():
            raise TrainingError("the network holds weights that are not finite; repair the checkpoint it came from")
        if resume:
            self._restore(together.sent(self._keeper.load() if together.first else None))
        else:
            if together.count > 1:
                state = together.sent(network_state(self._student, self._plain))
                put_network_state(self._student, self._plain, state)
            self._save()
        if self._step == 0 and self._scores.start is None and not self._config.prunes:  # which ends at other ranks
            self._scores.begin(self._student, self._average)
            self._save()

    def steps(self, stop: Interrupts) -> Iterator[Step]:
        """Makes all steps of all epochs.

        Raises:
            TrainingError: a loss stays infinite.
            KeyboardInterrupt: somebody asked to stop; the state is saved then.
        """
        config = self._config
        while self._epoch <= config.epochs:
            epoch = self._epoch
            for group, last in self._draws.groups(epoch, config.accumulate, skip=self._made):
                self._step += 1
                if last and epoch == 1:  # the loader may give fewer batches than its length says
                    self._total = config.epochs * self._step
                    self._cuts.spread_over(self._total)
                rate = rate_at(self._step, self._total, config) * 0.5**self._halvings
                losses, moved = self._mover.move(group, self._step, rate)
                if moved:
                    self._bad = 0
                elif self._is_lost():
                    self._go_back(losses)
                    break
                else:
                    _warn(f"the loss or its gradient was not finite at step {self._step}; the step was left out")
                self._epoch, self._made = (epoch + 1, 0) if last else (epoch, self._made + 1)
                cut = self._cut(group[-1]) if moved or self._over else None
                score = self._scores.take(self._student, self._average) if last else None
                step = self._told(epoch, losses, rate, score, cut, skipped=not moved)
                if self._together.first:
                    self._keeper.tell(step)
                    track(self._accelerator, step)
                yield step
                due = self._keeper.due(self._step - self._saved, epoch_over=last) or self._over
                later, carry_on = self._together.every(not due or not self._together.first, not stop.asked)
                if not later or not carry_on:
                    self._save()
                if not carry_on:
                    raise KeyboardInterrupt
            else:
                if self._epoch == epoch:  # it gave no batch
                    self._epoch, self._made = epoch + 1, 0

    def result(self) -> nn.Module:
        """The trained network."""
        config = self._config
        if self._step == 0:
            raise TrainingError("the training data gave no batch of two images or more; give it more images")
        if not self._cuts.over:  # the last epochs gave no batch
            self._cut_now(all_of_them=True)
            self._average.restart()
        self._average.settle()
        self._together.same_buffers(self._student)
        if config.prunes:
            relabel(self._student, f"threshold={config.threshold:g}" if config.budget is None else str(config.budget))
        return self._student.cpu().eval()

    @property
    def _over(self) -> bool:
        return self._epoch > self._config.epochs

    def _is_lost(self) -> bool:
        """After a step that was left out: whether leaving out more of them would not help."""
        self._bad += 1
        return self._bad >= _PATIENCE or not self._together.every(self._is_sound())[0]

    def _is_sound(self) -> bool:
        """Whether all weights and statistics are finite; other buffers may hold infinities, as masks do."""
        statistics = (buffer for norm in norms_of(self._student) for buffer in norm.buffers())
        return all(finite(value) for value in (*self._student.parameters(), *statistics))

    def _go_back(self, losses: Losses) -> None:
        """To the last state, and on at half the rate.

        Raises:
            TrainingError: that was tried often enough.
        """
        halvings, at = self._halvings + 1, self._step
        if halvings > _MOST_HALVINGS:
            raise TrainingError(
                f"the loss is {losses.whole.item()} at step {at}; lower the learning rate "
                f"(now {self._config.learning_rate:g}) or check the data"
            )
        self._restore(self._together.sent(self._keeper.load() if self._together.first else None))
        self._halvings = halvings
        _warn(
            f"the loss was {losses.whole.item()} at step {at}; going back to step {self._step}, and on from there at "
            f"{0.5**halvings:g} of the learning rate"
        )

    def _cut(self, batch: Batch) -> Cut | None:
        """Makes the cut that is due now, if there is one."""
        if not self._cuts.due(self._step) and not (self._over and not self._cuts.over):
            return None
        before = self._mover.task_loss(batch)
        cut = told(self._cut_now(all_of_them=self._over), before, self._mover.task_loss(batch))
        if cut.after:
            self._average.restart()
            self._count()
        return cut

    def _cut_now(self, *, all_of_them: bool) -> Cut:
        """The first process decides and decomposes; the others take what it has come to."""
        together = self._together
        made: dict[str, Any] | None = None
        if together.first:
            cut = self._cuts.cut(self._step, all_of_them=all_of_them)
            made = {
                "cut": (cut.before, cut.after),
                "network": network_state(self._student, self._plain),
                "cuts": self._cuts.state(),
            }
        made = together.sent(made)
        assert made is not None
        if not together.first:
            put_network_state(self._student, self._plain, made["network"])
            self._cuts.restore(made["cuts"])
        together.check({name: layer.rank for name, layer in self._layers.items()})
        return Cut(*made["cut"])

    def _count(self) -> None:
        now = plan_of(self._student)
        self._whole = {unit: now.fraction(unit) for unit in Unit}

    def _save(self) -> None:
        """Keeps all that going on from here depends on."""
        scaler, everybody = self._accelerator.scaler, self._together.gathered(random_state())
        self._saved = self._step
        if not self._together.first or not self._is_sound():  # there is no going on from weights that are not finite
            return
        self._keeper.save(
            {
                "format": FORMAT,
                "step": self._step,
                "epoch": self._epoch,
                "made": self._made,
                "total": self._total,
                "halvings": self._halvings,
                **self._scores.state(),
                "network": network_state(self._student, self._plain),
                "scaler": None if scaler is None else scaler.state_dict(),
                "average": self._average.state(),
                "cuts": self._cuts.state(),
                "sizes": self._objective.sizes,
                "draws": self._draws.state(over=self._made == 0 and self._step > 0),
                "random": everybody,
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        """Goes on from such a state; the shapes come first, the random numbers last."""
        put_network_state(self._student, self._plain, state["network"])
        self._step, self._epoch, self._made = state["step"], state["epoch"], state["made"]
        self._total, self._halvings, self._bad, self._saved = state["total"], state["halvings"], 0, state["step"]
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self._scores.restore(state)
        self._cuts.restore(state["cuts"])
        self._objective.sizes = state["sizes"]
        self._average.restore(state["average"])
        self._draws.restore(state["draws"])
        if self._together.first:
            self._keeper.rewind(self._step)
        self._count()
        put_random_state(state["random"][self._together.number])

    def _told(
        self, epoch: int, losses: Losses, rate: float, score: float | None, cut: Cut | None, *, skipped: bool
    ) -> Step:
        parts = (losses.whole, losses.task, losses.matching, losses.orthogonality, losses.rank)
        whole, task, matching, orthogonality, rank = self._together.mean(torch.stack(parts)).tolist()
        return Step(
            step=self._step,
            steps=self._total,
            epoch=epoch,
            loss=whole,
            task=task,
            matching=matching,
            orthogonality=orthogonality,
            rank=rank,
            learning_rate=rate,
            macs=self._whole[Unit.MACS],
            params=self._whole[Unit.PARAMS],
            score=score,
            best=None if score is None else self._scores.best,
            start=None if score is None else self._scores.start,
            cut=cut,
            skipped=skipped,
        )


def _trains_norms(config: FinetuneConfig, teacher: nn.Module | None) -> bool:
    if config.train_norms is not None:
        return config.train_norms
    return teacher is None or config.distill < 1


def _warn(message: str) -> None:
    warnings.warn(message, ConverterWarning, stacklevel=3)
