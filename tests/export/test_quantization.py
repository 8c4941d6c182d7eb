"""Files of 8 bits: what they say, what they keep, and which layers stay in float32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from dprp.export import (
    DataError,
    ExportError,
    ModelFileError,
    Ranges,
    Target,
    first_difference,
    is_quantized,
    layer_differences,
    nodes_by_error,
    quantize,
    quantize_within,
    read_metadata,
    recipe_for,
    this_cpu,
    to_onnx,
    verify,
)

QUANTIZED = "dprp.quantized"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip


@pytest.fixture
def model() -> nn.Module:
    return network()


@pytest.fixture
def images() -> list[Tensor]:
    return list(torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1)).split(32))


@pytest.fixture
def file(model: nn.Module, images: list[Tensor], tmp_path: Path) -> Path:
    to_onnx(model, images[0], tmp_path / "float.onnx", metadata={"dprp.model": "own"})
    return tmp_path / "float.onnx"


@pytest.mark.parametrize("target", [Target.AUTO, Target.X86_VNNI, Target.X86, Target.ARM])
@pytest.mark.parametrize("ranges", [Ranges.MINMAX, Ranges.PERCENTILE])
def test_every_layer_is_of_8_bits_and_the_answers_stay_near(
    target: Target, ranges: Ranges, model: nn.Module, file: Path, images: list[Tensor], tmp_path: Path
) -> None:
    small = tmp_path / "small.onnx"
    made = quantize(file, small, images, target=target, ranges=ranges)
    assert (made.products, made.floats, made.islands, made.images) == (3, (), (), 64)
    assert made.recipe.target is (this_cpu() if target is Target.AUTO else target)
    assert verify(model, small, images, tolerance=0.1).ok
    assert read_metadata(small)["dprp.model"] == "own"
    assert is_quantized(small)
    assert not is_quantized(file)
    assert json.loads(read_metadata(small)[QUANTIZED])["recipe"]["target"] == made.recipe.target
    assert [one.layer for one in layer_differences(model, small, images[0])] == ["0", "2", "6"]
    assert first_difference(layer_differences(model, small, images[0]), 0.2) is None


def test_a_bad_scale_is_found_where_it_is(model: nn.Module, file: Path, images: list[Tensor], tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    quantize(file, small, images)
    document = onnx.load(small)
    scale = next(entry for entry in document.graph.initializer if entry.name == "2.weight_scale")
    scale.CopyFrom(numpy_helper.from_array((3 * numpy_helper.to_array(scale)).astype(np.float32), scale.name))
    onnx.save(document, small)
    first = first_difference(layer_differences(model, small, images[0]), 0.5)
    assert first is not None
    assert first.layer == "2"


@pytest.mark.parametrize("batch", [1, 24])
def test_a_file_of_so_many_images_a_run_is_quantised_on_as_many(
    model: nn.Module, file: Path, images: list[Tensor], batch: int, tmp_path: Path
) -> None:
    """As one of any number is, but for the images that stand in where the last run lacks some."""
    fixed = tmp_path / "fixed.onnx"
    to_onnx(model, images[0], fixed, batch=batch)
    made = [quantize(path, tmp_path / f"8_{path.name}", images) for path in (file, fixed)]
    assert made[0] == made[1]
    ranked = [nodes_by_error(path, tmp_path / f"8_{path.name}", images) for path in (file, fixed)]
    assert sorted(ranked[0]) == sorted(ranked[1])
    assert batch != 1 or ranked[0] == ranked[1]
    assert verify(model, tmp_path / "8_fixed.onnx", images, tolerance=0.2).ok


def test_layers_stay_in_float32_by_name(file: Path, images: list[Tensor], tmp_path: Path) -> None:
    made = quantize(file, tmp_path / "small.onnx", images, floats=["2/Conv"])
    assert made.floats == ("2/Conv",)
    assert "2 of 3 layers in 8 bits" in str(made)
    with pytest.raises(ExportError, match=r"has no layer 9/Conv\. Its layers are 0/Conv, 2/Conv, 6/Gemm"):
        quantize(file, tmp_path / "other.onnx", images, floats=["9/Conv"])
    assert not (tmp_path / "other.onnx").exists()


def test_the_worst_layer_is_found(images: list[Tensor], tmp_path: Path) -> None:
    """One weight a thousand times as large as the others of its channel leaves these no steps."""
    model = network()
    with torch.no_grad():
        model[2].weight[:, 0, 0, 0] *= 1000
    source, small = tmp_path / "float.onnx", tmp_path / "small.onnx"
    to_onnx(model, images[0], source)
    quantize(source, small, images)
    assert nodes_by_error(source, small, images)[0] == "2/Conv"


def test_as_few_layers_as_suffice_stay_in_float32(file: Path, images: list[Tensor], tmp_path: Path) -> None:
    """A judge that wants the two worst of three in float32."""
    trial = tmp_path / "trial.onnx"
    quantize(file, trial, images)
    worst = set(nodes_by_error(file, trial, images)[:2])
    judged: list[int] = []

    def judge(path: Path) -> float:
        told = read_metadata(path).get(QUANTIZED)
        floats = {"0/Conv", "2/Conv", "6/Gemm"} if told is None else set(json.loads(told)["floats"])
        judged.append(len(floats))
        return 90.0 if worst <= floats else 80.0

    found = quantize_within(file, tmp_path / "small.onnx", images, judge=judge, max_drop=0.5)
    assert set(found.made.floats) == worst
    assert (found.before, found.after) == (90.0, 90.0)
    assert found.tried == len(judged) - 1 <= 3
    assert "2 layers in float32: 90.00 -> 90.00 % on the images that judge" in str(found)
    with pytest.raises(ExportError, match=r"loses more than 0\.5 points with any layer in 8 bits \(90\.00 -> 0"):
        quantize_within(file, tmp_path / "no.onnx", images, judge=lambda path: 90.0 * (path == file), max_drop=0.5)
    assert not (tmp_path / "no.onnx").exists()


def test_what_cannot_be_quantised_is_one_sentence(file: Path, images: list[Tensor], tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    with pytest.raises(DataError, match=r"no images to find ranges on"):
        quantize(file, small, [])
    with pytest.raises(ExportError, match=r"cannot quantise it \("):
        quantize(file, small, [torch.randn(2, 5, 12, 12)])
    assert not small.exists()
    quantize(file, small, images)
    with pytest.raises(ModelFileError, match=r"is quantised already\. Give the float32 file"):
        quantize(small, tmp_path / "again.onnx", images)
    with pytest.raises(ModelFileError, match=r"exists already"):
        quantize(file, small, images)


def test_recipes_differ_where_cpus_do() -> None:
    assert recipe_for(Target.X86).reduce_range
    assert not recipe_for(Target.X86_VNNI).reduce_range
    assert not recipe_for(Target.ARM).unsigned
    assert recipe_for(Target.AUTO) == recipe_for(this_cpu())
