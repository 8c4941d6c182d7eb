"""Options in a file: read, overridden, written, and refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dprp.models import DIGITS_WEIGHTS

from .conftest import Dprp

COMPRESS = {
    "model": "digits_cnn",
    "checkpoint": str(DIGITS_WEIGHTS),
    "data": "digits",
    "budget": "macs=0.6",
    "epochs": 0,
    "calibration-images": 64,
    "polish": 0,
    "rank-multiple": 4,
}


def _written(path: Path, **options: object) -> Path:
    path.write_text(yaml.safe_dump({key.replace("_", "-"): value for key, value in options.items()}))
    return path


def _options(text: str) -> dict[str, object]:
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("suffix", [".yaml", ".toml"])
def test_the_command_line_overrides_a_recipe(dprp: Dprp, tmp_path: Path, suffix: str) -> None:
    recipe = tmp_path / f"recipe{suffix}"
    recipe.write_text(
        "model: digits_cnn\nrank-multiple: 4\nkeep: [a, b]\nrandom-weights: true\ncheckpoint:\n"
        if suffix == ".yaml"
        else 'model = "digits_cnn"\nrank-multiple = 4\nkeep = ["a", "b"]\nrandom-weights = true\n'
    )
    run = dprp("plan", "--recipe", recipe, "--ratio", "0.5", "--rank-multiple", "2", "--print-recipe")
    found = _options(run.out)
    assert found["model"] == "digits_cnn"
    assert found["keep"] == ["a", "b"]
    assert found["random-weights"] is True
    assert found["ratio"] == 0.5
    assert found["rank-multiple"] == 2
    assert "checkpoint" not in found
    assert dprp("plan", "cifar_resnet20", "--recipe", recipe, "--keep", "c", "--print-recipe").code == 0


def test_what_print_recipe_prints_is_the_same_call(dprp: Dprp, tmp_path: Path) -> None:
    said = dprp("survey", "digits_cnn", "--input", "1x8x8", "--print-recipe").out
    (tmp_path / "again.yaml").write_text(said)
    assert dprp("survey", "--recipe", tmp_path / "again.yaml", "--print-recipe").out == said
    with_recipe, without = (
        dprp("survey", *arguments, "--json").json()
        for arguments in (("--recipe", tmp_path / "again.yaml"), ("digits_cnn",))
    )
    assert with_recipe == without


def test_a_result_folder_holds_the_recipe_that_makes_it_again(dprp: Dprp, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits data needs scikit-learn")
    recipe = _written(tmp_path / "first.yaml", **COMPRESS)
    first = dprp("compress", "--recipe", recipe, "-o", tmp_path / "one", "--json").json()
    left = tmp_path / "one" / "recipe.yaml"
    assert _options(left.read_text())["budget"] == "macs=0.6"
    again = dprp("compress", "--recipe", left, "-o", tmp_path / "two", "--json").json()
    measured = ("median_ms", "p90_ms", "images_per_s", "peak_memory_bytes")
    for network in ("dense", "compressed"):
        assert {k: v for k, v in again[network].items() if k not in measured} == {
            k: v for k, v in first[network].items() if k not in measured
        }
    assert again["notes"][-1] == first["notes"][-1]
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["budget"] == first["budget"]
    # As it stands it names the folder that is there by now.
    assert "exists already" in dprp("compress", "--recipe", left).err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modell: x", "'modell' is no option of this verb; did you mean model?"),
        ("json: true", "'json' is no option of this verb"),
        ("recipe: other.yaml", "'recipe' is no option of this verb"),
        ("- a", "is no table of options"),
        ("a: [", "is not YAML"),
        ("keep: [{a: b}]", "keep is no plain value"),
        ("model: [a, b]", "model takes one value, not a list"),
        ("rank-multiple: many", "rank-multiple"),
        ("rank-multiple: true", "rank-multiple takes a value, not true or false"),
        ("random-weights: 1", "random-weights is true or false"),
        ("rank-multiple: 0", "rank-multiple"),
    ],
)
def test_mistakes_name_the_file_and_the_key(dprp: Dprp, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    run = dprp("plan", "digits_cnn", "--ratio", "0.5", "--random-weights", "--recipe", tmp_path / "bad.yaml")
    assert run.code == 2
    assert run.out == ""
    assert run.err.count("\n") == 1
    assert says in run.err
    if "rank" not in text:
        assert "bad.yaml" in run.err


def test_no_is_no_in_yaml(dprp: Dprp, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("file: a\ndata: digits\nepochs: 1\noutput: b\nmixed-precision: no\n")
    run = dprp("finetune", "--recipe", tmp_path / "a.yaml", "--print-recipe")
    assert _options(run.out)["mixed-precision"] == "no"


def test_other_files_are_no_recipes(dprp: Dprp, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.toml").write_text("model: x")
    for name, says in (
        ("a.json", "a recipe is a .yaml or .toml file"),
        ("a.toml", "is not TOML"),
        ("b.yaml", "no such"),
    ):
        run = dprp("env", "--recipe", tmp_path / name)
        assert run.code == 2
        assert says in run.err
