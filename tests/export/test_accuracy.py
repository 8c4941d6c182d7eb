from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from dprp.export import Accuracy, AnsweredBy, DataError, ModelFileError, evaluate_onnx, to_onnx

GENERATOR = torch.Generator().manual_seed(5)
IMAGES = torch.randn(50, 3, 12, 12, generator=GENERATOR) * 2 + 1
LABELS = torch.randint(6, (50,), generator=GENERATOR)


@pytest.mark.parametrize("size", [1, 16, 50])
def test_same_top1_as_torch_with_an_uneven_last_batch(net: nn.Module, file: Path, size: int) -> None:
    with torch.no_grad():
        correct = int((net(IMAGES).argmax(1) == LABELS).sum())
    assert 0 < correct < 50
    batches = zip(IMAGES.split(size), LABELS.split(size), strict=True)
    assert evaluate_onnx(file, batches, threads=1) == Accuracy(100 * correct / 50, 50)


def test_all_right_is_100_percent(net: nn.Module, file: Path) -> None:
    with torch.no_grad():
        right = net(IMAGES).argmax(1)
    assert evaluate_onnx(file, [(IMAGES, right)]).top1 == 100.0
    assert evaluate_onnx(file, [(IMAGES, (right + 1) % 6)]).top1 == 0.0


def test_without_labels_a_file_s_own_answers_are_right(net: nn.Module, file: Path, tmp_path: Path) -> None:
    changed = copy.deepcopy(net)
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in changed.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        same = int((changed(IMAGES).argmax(1) == net(IMAGES).argmax(1)).sum())
    assert 0 < same < 50
    other = tmp_path / "other.onnx"
    to_onnx(changed, IMAGES[:2], other)
    judged = AnsweredBy(file, list(zip(IMAGES.split(16), LABELS.split(16), strict=True)))
    for _ in range(2):  # as often as is asked
        assert evaluate_onnx(file, judged) == Accuracy(100.0, 50)
        assert evaluate_onnx(other, judged) == Accuracy(100 * same / 50, 50)


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([], "no images to score"),
        ([(IMAGES[:0], LABELS[:0])], "no images to score"),
        ([(IMAGES, LABELS * 0 + 6)], r"label 6 is not in 0\.\.5"),
        ([(IMAGES, LABELS * 0 - 1)], r"label -1 is not in 0\.\.5"),
        ([(IMAGES, LABELS[:9])], r"labels of shape \(9,\) and type int64 for 50 images"),
        ([(IMAGES, LABELS.float())], r"type float32 for 50 images\. Give one integer per image"),
    ],
)
def test_what_cannot_be_scored_is_said(
    file: Path, batches: list[tuple[torch.Tensor, torch.Tensor]], text: str
) -> None:
    with pytest.raises(DataError, match=text):
        evaluate_onnx(file, batches)


def test_only_classifiers_have_a_top1(tmp_path: Path) -> None:
    path = tmp_path / "conv.onnx"
    to_onnx(nn.Conv2d(3, 6, 3), IMAGES[:2], path)
    with pytest.raises(DataError, match=r"output of shape \(50, 6, 10, 10\) for 50 images is not \(50, classes\)"):
        evaluate_onnx(path, [(IMAGES, LABELS)])


def test_missing_and_corrupt_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match=r"corrupt\.onnx: ONNX Runtime .* cannot load it"):
        evaluate_onnx(corrupt, [(IMAGES, LABELS)])
    with pytest.raises(ModelFileError, match=r"absent\.onnx: no such file"):
        evaluate_onnx(tmp_path / "absent.onnx", [(IMAGES, LABELS)])
    assert tuple(capfd.readouterr()) == ("", "")


def test_scores_that_are_not_finite_are_no_accuracy(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 6)).eval()
    to_onnx(model, IMAGES[:2], tmp_path / "net.onnx")
    with pytest.raises(DataError, match=r"net\.onnx: its scores are not finite on these images"):
        evaluate_onnx(tmp_path / "net.onnx", [(IMAGES * float("inf"), LABELS)])
