"""Options are dataclasses: said once, known to the command line, recipes and Python alike."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from dprp.converter import FinetuneConfig, OptimizerKind, OptionError, RankPenalty, Sensitivity
from dprp.converter.chain.compressing import CompressConfig
from dprp.converter.chain.conversion import BASE_FORMS, ConversionConfig
from dprp.converter.cli import verbs
from dprp.converter.cli.asked import asked_mix
from dprp.converter.cli.fields import option_fields
from dprp.converter.cli.options import data, integers, ranks, training
from dprp.converter.cli.recipes import written
from dprp.export import Ranges, Target
from dprp.models import DIGITS_WEIGHTS, Mix
from dprp.models.augment import Augment

from .conftest import Dprp

VERBS = [
    "compress",
    "demo",
    "survey",
    "plan",
    "convert",
    "finetune",
    "evaluate",
    "export",
    "verify",
    "quantize",
    "benchmark",
    "env",
]
OPTIONS = [getattr(verbs, f"{verb.title()}Options") for verb in VERBS]


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_is_a_function_of_its_options(verb: str) -> None:
    assert callable(getattr(importlib.import_module(f"dprp.converter.cli.{verb}"), verb))


@pytest.mark.parametrize("options", OPTIONS)
def test_each_option_says_what_it_is(options: type) -> None:
    for field in option_fields(options).values():
        about = field.parameter.annotation.__metadata__[0].help
        assert about.endswith("."), field.name


def test_options_need_no_torch() -> None:
    code = "import sys, dprp.converter.cli.verbs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (ranks.FormName, [form.value for form in BASE_FORMS]),
        (ranks.SensitivityName, [kind.value for kind in Sensitivity]),
        (training.PenaltyName, [kind.value for kind in RankPenalty]),
        (training.OptimizerName, [kind.value for kind in OptimizerKind]),
        (data.Mixing, [kind.value for kind in Mix]),
        (data.Augmentation, [kind.value for kind in Augment]),
        (integers.CpuTarget, [target.value for target in Target]),
        (integers.RangesName, [way.value for way in Ranges]),
    ],
)
def test_choices_are_those_that_there_are(names: Any, known: list[str]) -> None:
    assert sorted(get_args(names)) == sorted(known)


def test_defaults_are_the_converters() -> None:
    """The options repeat them, as reading them would load torch for `dprp --help`."""
    ours, theirs = (
        {field.name: field.default for field in fields(one)} for one in (verbs.FinetuneOptions, FinetuneConfig)
    )
    names = ("learning_rate", "weight_decay", "distill", "orthogonality", "prune_until", "rank_multiple")
    names += ("matching", "cuts", "accumulate", "average")
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
    assert ours["rank_loss"] == theirs["rank"]
    assert ours["rank_penalty"] == str(theirs["rank_penalty"])
    assert ours["optimizer"] == str(theirs["optimizer"])
    assert ours["mixed_precision"] == theirs["mixed_precision"]
    chain, config = (
        {field.name: field.default for field in fields(one)} for one in (verbs.CompressOptions, CompressConfig)
    )
    names = ("learning_rate", "distill", "matching", "headroom", "mixed_precision", "polish")
    assert {name: chain[name] for name in names} == {name: config[name] for name in names}
    planning = {field.name: field.default for field in fields(verbs.PlanOptions)}
    assert planning["calibration_images"] == ConversionConfig.images
    assert planning["rank_multiple"] == ConversionConfig.rank_multiple
    assert planning["sensitivity"] == ConversionConfig.sensitivity.value


@pytest.mark.parametrize(
    ("more", "taught", "mix"),
    [
        ({}, True, "none"),
        ({"distill": 1.0}, True, "cutmix"),
        ({"distill": 1.0, "augment": "none"}, True, "none"),
        ({"distill": 1.0, "augment": "none", "mix": "mixup"}, True, "mixup"),
        ({"distill": 1.0, "mix": "none"}, True, "none"),
        ({"distill": 1.0}, False, "none"),
        ({"mix": "cutmix"}, False, "cutmix"),
    ],
)
def test_images_are_mixed_where_labels_have_no_part(more: dict[str, Any], taught: bool, mix: str) -> None:
    asked = verbs.CompressOptions(model="m", data="digits", budget="macs=0.5", epochs=1, output=Path("o"), **more)
    assert asked_mix(asked, taught=taught) == mix


def test_what_python_asks_for_is_a_recipe_that_asks_for_the_same(dprp: Dprp, tmp_path: Path) -> None:
    asked = verbs.ConvertOptions(
        model="digits_cnn",
        output=tmp_path / "small.safetensors",
        input_shape=(1, 8, 8),
        mean=(0.25,),
        std=(0.5,),
        forms=("channel", "spatial"),
        keep=("head", "stem*"),
        ratio=0.5,
        random_weights=True,
        seed=3,
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(written("convert", asked))
    assert dprp("convert", "--recipe", recipe, "--print-recipe").out == recipe.read_text()


@pytest.mark.parametrize(
    ("options", "given", "says"),
    [
        (verbs.ConvertOptions, {"threads": 0}, "threads 0 is below 1"),
        (verbs.ConvertOptions, {"threads": 2000}, "threads 2000 is above 1024"),
        (verbs.ConvertOptions, {"sensitivity": "gut"}, "'gut' is not one of best, energy, kl, mixed"),
        (verbs.ConvertOptions, {"forms": ("channel", "plane")}, "'plane' is not one of channel, pointwise, spatial"),
        (verbs.ConvertOptions, {"device": "tpu"}, "'tpu' is not one of auto, cpu, cuda"),
    ],
)
def test_python_is_refused_what_the_command_line_is(options: type, given: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        options(model="x", output="y.safetensors", **given)


def test_verbs_are_functions_of_dprp(tmp_path: Path) -> None:
    """Paths may be text."""
    from dprp.verbs import ConvertOptions, convert

    output = tmp_path / "small.safetensors"
    made = convert(ConvertOptions(model="digits_cnn", checkpoint=str(DIGITS_WEIGHTS), rank=4, output=str(output)))
    assert made.output == output
    assert output.exists()
    assert set(dir(importlib.import_module("dprp.verbs"))) >= {*VERBS, *(one.__name__ for one in OPTIONS)}


def test_no_six_lines_stand_twice() -> None:
    """Of the command line's code: what two places share is one place."""
    folder = Path(verbs.__file__).parent
    seen: dict[tuple[str, ...], str] = {}
    for path in sorted(folder.rglob("*.py")):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if line]
        for index in range(len(lines) - 5):
            window = tuple(lines[index : index + 6])
            here = f"{path.relative_to(folder)}: {window[0]}"
            assert window not in seen, f"{here} is {seen[window]}"
            seen[window] = here
