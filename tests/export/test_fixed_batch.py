"""Files of one number of images a run, and of images one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from dprp.export import Accuracy, ExportError, evaluate_onnx, first_difference, layer_differences, to_onnx, verify

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(7))


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 432)


def test_a_file_may_take_one_number_of_images_and_no_other(tmp_path: Path) -> None:
    model, images = FixedBatch(), torch.randn(7, 3, 12, 12)
    with pytest.raises(ExportError, match=r"out of forward, and fixed batch sizes, or fix how many .*batch=1"):
        to_onnx(model, images, tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"batch: 0 is not at least 1\. Give how many"):
        to_onnx(model, images, tmp_path / "a.onnx", batch=0)
    assert not list(tmp_path.iterdir())
    result = to_onnx(model, images, tmp_path / "a.onnx", batch=2)
    assert (result.ok, result.batches, result.images) == (True, 4, 8)
    assert [dim.dim_value for dim in _shape(tmp_path / "a.onnx")] == [2, 3, 12, 12]
    assert verify(model, tmp_path / "a.onnx", [images[:2]]).ok


@pytest.mark.parametrize("batch", [1, 3])
def test_such_a_file_is_run_as_often_as_there_are_images(net: nn.Module, batch: int, tmp_path: Path) -> None:
    to_onnx(net, IMAGES, tmp_path / "a.onnx", batch=batch)
    images, path = torch.randn(8, 3, 12, 12), tmp_path / "a.onnx"
    result = verify(net, path, images.split([1, 2, 5]), tolerance=1e-5)
    assert (result.ok, result.images, result.top1_agreement) == (True, 8, 1.0)
    assert evaluate_onnx(path, [(images, net(images).argmax(1))]) == Accuracy(100.0, 8)
    assert first_difference(layer_differences(net, path, images), 1e-5) is None


class Features(nn.Module):
    """A list of images, or two, of whatever sizes; gives what it found in all and in each."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images: list[Tensor], others: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        maps = [self.layer(image[None])[0] for image in [*images, *(others or [])]]
        return torch.stack([one.mean((1, 2)) for one in maps]), maps


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ((), ["input_0", "input_1"]),
        (([torch.randn(3, 6, 6), torch.randn(3, 5, 5)],), ["input_0_0", "input_0_1", "input_1_0", "input_1_1"]),
    ],
)
def test_each_image_of_a_list_is_an_input_of_its_own(more: tuple[Any, ...], names: list[str], tmp_path: Path) -> None:
    images, path = [torch.randn(3, 8, 9), torch.randn(3, 10, 7)], tmp_path / "a.onnx"
    model = Features().eval()
    example: Any = (images, *more) if more else images
    result = to_onnx(model, example, path)
    assert (result.ok, result.batches, result.images) == (True, 4, 8)
    assert [entry.name for entry in onnx.load(path).graph.input] == names
    assert [dim.dim_value for dim in _shape(path)] == [3, 8, 9]
    assert to_onnx(model, example, path, batch=2, force=True).ok
    with pytest.raises(ExportError, match=r"batch: 4 is impossible for a list of 2 images\. Give a list of 4"):
        to_onnx(model, example, path, batch=4, force=True)


def _shape(path: Path) -> Any:
    return onnx.load(path).graph.input[0].type.tensor_type.shape.dim
