"""The single steps on the digits network, each on the file of the one before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dprp.converter import Energy, FixedRank, Form, Plan, RankRatio, load_compressed
from dprp.converter.chain.network import build_plain, open_network
from dprp.converter.cli.convert import convert
from dprp.converter.cli.finetune import finetune
from dprp.converter.cli.verbs import ConvertOptions, FinetuneOptions
from dprp.export import onnx_macs, op_counts, read_metadata
from dprp.models import DIGITS_WEIGHTS, build, load_weights


def test_survey(dprp: Any, small: Path) -> None:
    found = dprp("survey", "digits_cnn", "--json").json()
    assert found["macs"] == 36_864 + 2_359_296 + 3_538_944 + 1_327_104 + 960
    assert found["input_shape"] == [1, 8, 8]
    names = [layer["name"] for layer in found["layers"]]
    assert names == ["block1.conv", "block2.conv", "block3.conv", "block4.conv", "head"]
    assert dprp("survey", "digits_cnn", "--classes", 7, "--json").json()["macs"] == found["macs"] - 3 * 96

    table = dprp("survey", "digits_cnn").out
    assert all(name in table for name in names)
    assert "already factored" in dprp("survey", small).out
    larger = dprp("survey", "digits_cnn", "--input", "1x16x16", "--json").json()
    assert larger["macs"] - 960 == 4 * (found["macs"] - 960)


def test_convert_evaluate_export_benchmark(dprp: Any, tmp_path: Path) -> None:
    small, onnx, plan = tmp_path / "small.safetensors", tmp_path / "small.onnx", tmp_path / "plan.json"
    told = dprp(
        *("convert", "digits_cnn", "--checkpoint", DIGITS_WEIGHTS, "--budget", "params=0.6", "-o", small),
        *("--save-plan", plan, "--keep", "block1*", "--keep", "head", "--form", "spatial", "--json"),
    ).json()
    assert told["output"] == str(small)
    assert 0.55 < told["params"]["part"] <= 0.6
    assert set(told["layers"]) <= {"block2.conv", "block3.conv", "block4.conv"}
    assert all(form.startswith("spatial") for form in told["layers"].values())
    saved = Plan.from_json(plan.read_text())
    assert saved == load_compressed(small, build_plain).plan

    score = dprp("evaluate", small, "--data", "digits", "--json").json()
    assert set(score) == {"top1", "images"}
    assert score["images"] == 500
    assert score["top1"] > 90

    exported = dprp("export", small, "-o", onnx)
    assert exported.code == 0
    assert "same outputs as torch" in exported.out
    assert dprp("evaluate", onnx, "--data", "digits", "--json").json() == score
    assert onnx_macs(onnx) == told["macs"]["compressed"]
    assert set(op_counts(onnx)) <= {
        "Conv",
        "Relu",
        "MaxPool",
        "Gemm",
        "GlobalAveragePool",
        "Reshape",
        "ReduceMean",
        "Flatten",
    }
    timed = dprp("benchmark", onnx, onnx, "--rounds", 2, "--json").json()
    assert [file["path"] for file in timed["files"]] == [str(onnx), str(onnx)]
    assert timed["environment"]["threads"] == 1
    assert all(file["median_ms"] > 0 for file in timed["files"])


def test_dense_model_with_a_checkpoint(dprp: Any, tmp_path: Path) -> None:
    options = ("--checkpoint", DIGITS_WEIGHTS)
    score = dprp("evaluate", "digits_cnn", *options, "--data", "digits", "--json").json()
    assert score["top1"] > 98
    assert dprp("evaluate", "digits_cnn", "--random-weights", "--data", "digits", "--json").json()["top1"] < 50
    assert dprp("export", "digits_cnn", *options, "-o", tmp_path / "dense.onnx").code == 0
    assert dprp("evaluate", tmp_path / "dense.onnx", "--data", "digits", "--json").json() == score
    assert "BatchNormalization" not in op_counts(tmp_path / "dense.onnx")


def test_evaluate_prints_a_sentence_and_takes_a_limit(dprp: Any, small: Path) -> None:
    run = dprp("evaluate", small, "--data", "digits", "--limit", 40)
    assert run.out.endswith("% top-1 on 40 test images\n")


def test_finetune_lands_on_its_budget(dprp: Any, small: Path, tmp_path: Path) -> None:
    before = dprp("evaluate", small, "--data", "digits", "--json").json()["top1"]
    output = tmp_path / "tuned.safetensors"
    run = dprp(
        *("finetune", small, "--data", "digits", "--epochs", 1, "--batch-size", 64, "-o", output),
        *("--budget", "macs=0.4", "--teacher", DIGITS_WEIGHTS, "--json"),
    )
    told = run.json()
    assert 0.36 < told["macs"]["part"] <= 0.4
    assert "fine-tuning" in run.err
    assert told["layers"] != told["layers_before"]
    assert [epoch["epoch"] for epoch in told["epochs"]] == [1]
    assert told["top1"] > before - 5
    again = dprp("evaluate", output, "--data", "digits", "--json").json()
    assert again == {"top1": told["top1"], "images": 500}
    assert dprp("survey", output, "--json").json()["macs"] == told["macs"]["compressed"]
    assert told["top1_before"] is None  # of other ranks


def test_finetune_without_a_budget_keeps_the_ranks(small: Path, tmp_path: Path) -> None:
    made = finetune(
        FinetuneOptions(
            file=small,
            data="digits",
            epochs=1,
            output=tmp_path / "tuned.safetensors",
            augment="none",
            quiet=True,
            device="cpu",
        )
    )
    assert {name: layer.rank for name, layer in made.before.factored.items()} == {
        name: layer.rank for name, layer in made.after.factored.items()
    }


def test_finetune_on_mixed_and_changed_images(dprp: Any, small: Path, tmp_path: Path) -> None:
    """Every option of training goes through."""
    run = dprp(
        *("finetune", small, "--data", "digits", "--epochs", 1, "-o", tmp_path / "tuned.safetensors", "--json"),
        *("--augment", "rand", "--mix", "cutmix", "--accumulate", 2, "--average", 0.9, "--optimizer", "adam"),
        *("--budget", "macs=0.55", "--cuts", 2, "--rank-penalty", "fade", "--device", "cpu"),
    )
    assert run.json()["macs"]["part"] <= 0.55
    assert run.json()["top1"] > 50


def test_finetune_threshold_drops_ranks(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "t.safetensors"
    made = finetune(
        FinetuneOptions(file=small, data="digits", epochs=1, threshold=0.5, output=output, quiet=True, device="cpu")
    )
    ranks = [sum(layer.rank or 0 for layer in plan.factored.values()) for plan in (made.before, made.after)]
    assert ranks[1] < ranks[0]


def test_the_same_seed_gives_the_same_file(small: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        finetune(
            FinetuneOptions(file=small, data="digits", epochs=1, output=file, seed=seed, quiet=True, device="cpu")
        )
    first, same, other = (load_compressed(file, build_plain).model.state_dict() for file in files)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("option", "rule"),
    [({"ratio": 0.25}, RankRatio(0.25)), ({"rank": 8}, FixedRank(8)), ({"energy": 0.7}, Energy(0.7))],
)
def test_rules_for_ranks(option: dict[str, Any], rule: object, tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    made = convert(
        ConvertOptions(model="digits_cnn", checkpoint=DIGITS_WEIGHTS, output=output, forms=("channel",), **option)
    )
    assert made.plan.budget == str(rule)
    assert {layer.form for layer in made.plan.factored.values()} == {Form.CHANNEL}


def test_a_plan_edited_by_hand(dprp: Any, tmp_path: Path) -> None:
    plan, first, second = tmp_path / "plan.json", tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    start = ("convert", "digits_cnn", "--checkpoint", DIGITS_WEIGHTS)
    assert dprp(*start, "--budget", "macs=0.5", "-o", first, "--save-plan", plan).code == 0
    document = json.loads(plan.read_text())
    by_name = {layer["name"]: layer for layer in document["layers"]}
    by_name["block3.conv"] |= {"form": "channel", "rank": 17}
    by_name["block2.conv"] |= {"form": None, "rank": None}
    plan.write_text(json.dumps(document))
    told = dprp(*start, "--plan", plan, "-o", second, "--json").json()
    assert told["layers"]["block3.conv"] == "channel:17"
    assert "block2.conv" not in told["layers"]
    model = load_compressed(second, build_plain).model
    assert model.block3.conv.rank == 17
    assert isinstance(model.block2.conv, torch.nn.Conv2d)

    for edit, says in (
        ({"rank": 1000}, "block3.conv: rank 1000 is not in 1..96"),
        ({"rank": "many"}, "block3.conv: rank 'many' is not in 1..96"),
        ({"form": "tucker"}, "block3.conv: form 'tucker' is not one of channel"),
        ({"params": "many"}, "plan.json: "),
    ):
        broken = document | {"layers": [{**by_name["block3.conv"], **edit}]}
        plan.write_text(json.dumps(broken))
        run = dprp(*start, "--plan", plan, "-o", tmp_path / "3.safetensors")
        assert run.code == 2
        assert says in run.err
        assert run.err.count("\n") == 1
    for text, says in (("{", "plan.json: the plan is not JSON"), ("{}", "plan.json: the JSON is not a plan")):
        plan.write_text(text)
        assert says in dprp(*start, "--plan", plan, "-o", tmp_path / "3.safetensors").err
    assert not (tmp_path / "3.safetensors").exists()


def test_a_plan_for_another_network(dprp: Any, tmp_path: Path) -> None:
    plan, output = tmp_path / "plan.json", tmp_path / "o.safetensors"
    start = ("convert", "digits_cnn", "--checkpoint", DIGITS_WEIGHTS)
    assert dprp(*start, "--rank", 8, "-o", output, "--save-plan", plan).code == 0
    run = dprp(*start, "--plan", plan, "-o", output, "--force", "--input", "1x16x16")
    assert "the plan is for inputs of 1x8x8, the model's are 1x16x16" in run.err
    run = dprp(
        "convert", "cifar_resnet20", "--random-weights", "--input", "1x8x8", "--plan", plan, "-o", output, "--force"
    )
    assert run.code == 2
    assert "--form and --keep" in dprp(*start, "--plan", plan, "--form", "channel", "-o", output, "--force").err
    document = json.loads(plan.read_text())
    document["layers"][-1] |= {"name": "head", "form": "channel", "rank": 2}
    plan.write_text(json.dumps(document))
    assert dprp(*start, "--plan", plan, "-o", output, "--force").code == 0


def test_force_writes_over_a_file(dprp: Any, tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    output.write_text("old")
    command = ("convert", "digits_cnn", "--checkpoint", DIGITS_WEIGHTS, "--rank", 8, "-o", output)
    assert dprp(*command).code == 2
    assert output.read_text() == "old"
    assert dprp(*command, "--force").code == 0
    assert load_compressed(output, build_plain).source.model == "digits_cnn"
    assert [file.name for file in tmp_path.iterdir()] == ["o.safetensors"]


def test_own_network_and_its_normalisation(dprp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mean and std go into the compressed file, from there into the ONNX file, and matter when it is scored."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_digits.py").write_text(
        "from dprp.models import digits_cnn\n\n\ndef build(num_classes=10):\n"
        "    print('building')\n    return digits_cnn(num_classes)\n"
    )
    start = ("my_digits:build", "--checkpoint", DIGITS_WEIGHTS, "--input", "1x8x8")
    assert "pass --input CxHxW" in dprp("survey", "my_digits:build").err
    dense = dprp("evaluate", *start, "--mean", "0", "--std", "1", "--data", "digits", "--json").json()
    assert dense["top1"] > 98
    told = dprp(
        "convert", *start, "--mean", "0", "--std", "1", "--ratio", "0.5", "-o", "own.safetensors", "--json"
    ).json()
    assert told["budget"] == "ratio=0.5"
    source = open_network("own.safetensors", trust="my_digits:build").source
    assert (source.input_shape, source.mean, source.std) == ((1, 8, 8), (0.0,), (1.0,))
    trust = ("--trust", "my_digits:build")
    assert dprp("export", "own.safetensors", *trust, "-o", "own.onnx").code == 0
    about = read_metadata("own.onnx")
    assert (about["dprp.input"], about["dprp.mean"], about["dprp.std"]) == ("1x8x8", "0.0", "1.0")
    assert json.loads(about["dprp.layers"]) == told["layers"]
    assert "torch" in json.loads(about["dprp.versions"])
    right = dprp("evaluate", "own.onnx", "--data", "digits", "--json")
    assert right.json() == dprp("evaluate", "own.safetensors", *trust, "--data", "digits", "--json").json()
    assert "ImageNet" not in right.err
    wrong = dprp("evaluate", "own.onnx", "--mean", "5", "--std", "0.1", "--data", "digits", "--json").json()
    assert wrong["top1"] < right.json()["top1"] - 5


def test_a_file_says_what_it_came_from_and_what_its_outputs_mean(dprp: Any, tmp_path: Path) -> None:
    small, onnx, names = tmp_path / "small.safetensors", tmp_path / "small.onnx", tmp_path / "names.txt"
    labels = [f"Ziffer {number} ☂" for number in range(10)]
    names.write_text("\n".join(labels) + "\n", encoding="utf-8")
    start = ("convert", "digits_cnn", "--checkpoint", DIGITS_WEIGHTS, "--ratio", "0.5")
    assert dprp(*start, "-o", small, "--labels", names).code == 0
    assert dprp("export", small, "-o", onnx).code == 0
    about = read_metadata(onnx)
    assert json.loads(about["dprp.labels"]) == labels
    assert about["dprp.source_sha256"] == hashlib.sha256(DIGITS_WEIGHTS.read_bytes()).hexdigest()

    names.write_text("\n".join(reversed(labels)), encoding="utf-8")
    assert dprp("export", small, "--labels", names, "-o", onnx, "--force").code == 0
    assert json.loads(read_metadata(onnx)["dprp.labels"]) == labels[::-1]
    assert dprp("export", "digits_cnn", "--random-weights", "-o", onnx, "--force").code == 0
    assert not {"dprp.labels", "dprp.source_sha256"} & set(read_metadata(onnx))


def test_foreign_onnx_file_is_taken_as_imagenets_aloud(dprp: Any, tmp_path: Path) -> None:
    from dprp.export import to_onnx

    model = build("digits_cnn")
    load_weights(model, DIGITS_WEIGHTS)
    to_onnx(model, torch.zeros(2, 1, 8, 8), tmp_path / "foreign.onnx")
    command = ("evaluate", tmp_path / "foreign.onnx", "--data", "digits", "--json", "--input", "1x8x8")
    guessed = dprp(*command)
    assert "taking ImageNet's for --mean, --std" in guessed.err
    told = dprp(*command, "--mean", "0", "--std", "1")
    assert told.err == ""
    assert told.json()["top1"] > 98
