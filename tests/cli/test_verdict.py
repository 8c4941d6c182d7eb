"""A conversion says whether its network still answers as the dense one does, and which budget would hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dprp.converter import Polish
from dprp.converter.analysis.agreement import Agreement
from dprp.converter.chain.verdict import Polished, Verdict
from dprp.models import DIGITS_WEIGHTS

FEW = ("--calibration-images", "300", "--sensitivity", "mixed")
"""Without trials, which take as long as all else here."""
START = ("digits_cnn", "--checkpoint", str(DIGITS_WEIGHTS), "--calibrate", "digits", *FEW)


@pytest.mark.parametrize("verb", ["plan", "convert"])
def test_a_budget_that_holds_is_said_to(dprp: Any, tmp_path: Path, verb: str) -> None:
    more = ("--polish", 0) if verb == "convert" else ()
    run = dprp(verb, *START, "--budget", "macs=0.7", *more, "-o", tmp_path / "a.safetensors", "--json")
    told = run.json()["agreement"]
    assert told["part"] > 0.8
    assert told["images"] == 60  # not the 300 that it was fitted on
    assert told["nats"] < 0.2
    assert told["advice"] is None
    assert told["polish"] is None


def test_one_that_does_not_is_said_with_one_that_would(dprp: Any, tmp_path: Path) -> None:
    closed_form = ("convert", *START, "--rank-multiple", "1", "--polish", "0")
    run = dprp(*closed_form, "--budget", "macs=0.012", "-o", tmp_path / "a.safetensors")
    assert run.code == 0
    line = next(line for line in run.out.splitlines() if "same answer" in line)
    found = re.fullmatch(
        r"the same answer as the dense network on ([\d.]+) % of 60 images that it was not fitted on; "
        r"macs=0\.012 is too tight without training"
        r"(: macs=0\.\d+ would hold \([\d.]+ % of 60 images\)|, and so is macs=0\.\d+ still .*)",
        line,
    )
    assert found, line
    assert float(found[1]) < 80
    if "would hold" in line:
        budget = re.search(r"(macs=0\.\d+) would", line)
        assert budget is not None
        again = dprp(*closed_form, "--budget", budget[1], "-o", tmp_path / "b.safetensors", "--json")
        assert again.json()["agreement"]["part"] >= 0.8  # the advice is true


def test_without_images_nothing_is_said(dprp: Any, tmp_path: Path) -> None:
    run = dprp("convert", *START[:3], "--budget", "macs=0.7", "-o", tmp_path / "a.safetensors", "--json")
    assert run.json()["agreement"] is None


def test_compress_says_it_in_its_notes(dprp: Any, tmp_path: Path) -> None:
    start = ("digits_cnn", "--checkpoint", str(DIGITS_WEIGHTS), "--data", "digits", *FEW)
    for epochs, steps, images in ((0, 0, 60), (0, 5, 60), (1, 5, 500)):
        folder = tmp_path / f"{epochs} {steps}"
        more = ("--budget", "macs=0.6", "--epochs", epochs, "--polish", steps)
        run = dprp("compress", *start, *more, "-o", folder, "--json")
        (note,) = (note for note in run.json()["notes"] if "same answer" in note)
        assert re.fullmatch(
            rf"the same answer as the dense network on [\d.]+ % of {images} images that it was .*", note
        )
        assert ("polishing" in note) is (epochs == 0 and steps > 0)
        before = [note for note in run.json()["notes"] if note.startswith("before training: polish")]
        assert len(before) == (epochs > 0 and steps > 0)
        gained = [note for note in run.json()["notes"] if " % top-1 before training, " in note]
        assert len(gained) == epochs
        assert (run.json()["top1_before_training"] is None) is (epochs == 0)


def test_finetune_says_what_it_was_worth(dprp: Any, tmp_path: Path) -> None:
    small, tuned = tmp_path / "small.safetensors", tmp_path / "tuned.safetensors"
    dprp("convert", "digits_cnn", "--checkpoint", DIGITS_WEIGHTS, "--budget", "macs=0.3", "-o", small)
    before = dprp("evaluate", small, "--data", "digits", "--json").json()["top1"]
    how = ("finetune", small, "--data", "digits", "--epochs", 1, "-o", tuned, "--force")
    assert dprp(*how, "--json").json()["top1_before"] == before
    told = dprp(*how, "--lr", 1.0, "--optimizer", "sgd").out
    assert re.search(rf"{before:.2f} % top-1 before training, [\d.]+ % after it: it was no help here; keep", told)


def test_polishing_says_what_it_added(dprp: Any, tmp_path: Path) -> None:
    cut = ("convert", *START, "--budget", "macs=0.03", "--rank-multiple", 1, "-o", tmp_path / "a.safetensors")
    run = dprp(*cut, "--polish", 120, "--json")
    told = run.json()["agreement"]
    done = told["polish"]
    assert done["steps"] == 120
    assert done["after"] < done["before"]
    assert told["nats"] < done["start"]["nats"]
    assert "120/120" in run.err  # the bar


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (90, "; 72.0 % before polishing (90 of 120 steps; 0.512 nats apart, now 0.25)"),
        (0, "; 120 steps of polishing brought it no nearer"),
    ],
)
def test_a_verdict_names_both(kept: int, says: str) -> None:
    polished = Polished(Agreement(0.72, 50, 0.5123), Polish(0.4, 0.3, 120, kept))
    verdict = Verdict(Agreement(0.9, 50, 0.25), "advice", polished)
    told = "the same answer as the dense network on 90.0 % of 50 images that it was not fitted on"
    assert str(verdict) == f"{told}{says}; advice"


def test_polishing_needs_images(dprp: Any, tmp_path: Path) -> None:
    run = dprp("convert", *START[:3], "--budget", "macs=0.7", "--polish", 5, "-o", tmp_path / "a.safetensors")
    assert run.code == 2
    assert "--polish 5 needs images; give it calibration images, or leave it out" in run.err
    few = (*START[:5], "--calibration-images", 5, "--budget", "macs=0.7", "-o", tmp_path / "a.safetensors")
    run = dprp("convert", *few, "--polish", 5)
    assert run.code == 2
    assert "--polish 5 needs 10 calibration images, there are 5; give it more, or leave it out" in run.err
    assert not list(tmp_path.iterdir())
