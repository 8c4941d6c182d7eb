from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from dprp.export import DataError, ModelFileError, Verification, VerificationError, verify

IMAGES = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def _planted(file: Path, to: Path, change: float) -> Path:
    """The file with one weight of its first convolution changed."""
    model = onnx.load(file)
    name = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    tensor = next(entry for entry in model.graph.initializer if entry.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[0, 0, 1, 1] += change
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    onnx.save(model, to)
    return to


def test_one_wrong_weight_is_found(net: nn.Module, file: Path, tmp_path: Path) -> None:
    assert verify(net, file, [IMAGES]).ok
    wrong = verify(net, _planted(file, tmp_path / "wrong.onnx", 0.05), [IMAGES])
    assert not wrong.ok
    assert wrong.max_rel > wrong.tolerance
    assert str(wrong).startswith("outputs differ from torch on 3 images in 1 batch:")


def test_not_a_number_is_never_ok(net: nn.Module, file: Path, tmp_path: Path) -> None:
    result = verify(net, _planted(file, tmp_path / "nan.onnx", np.nan), [IMAGES], tolerance=1e9)
    assert not result.ok
    assert result.max_rel == float("inf")


def test_every_batch_counts(net: nn.Module, file: Path) -> None:
    wild = nn.Sequential(net, nn.Threshold(1e6, 0.0))  # 0 everywhere, unlike the file
    result = verify(wild, file, [IMAGES, IMAGES])
    assert not result.ok
    assert result.max_rel == float("inf")
    assert result.max_abs > 0.1


def test_difference_is_relative_to_the_outputs_scale(net: nn.Module, file: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * 1.01

    result = verify(Scaled(), file, [IMAGES], tolerance=0.02)
    assert result.max_rel == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert result.top1_agreement == 1.0
    assert result.ok
    assert not verify(Scaled(), file, [IMAGES], tolerance=0.005).ok


def test_top1_agreement_is_the_share_of_images(net: nn.Module, file: Path) -> None:
    class Swapped(nn.Module):
        """The classes of every third image in another order."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.net(x)
            logits[::3] = logits[::3].roll(1, 1)
            return logits

    assert verify(Swapped(), file, [IMAGES]).top1_agreement == pytest.approx(2 / 3)


def test_model_in_training_mode_is_compared_in_evaluation_mode(net: nn.Module, file: Path) -> None:
    net.train()
    try:
        assert verify(net, file, [IMAGES]).ok
        assert all(module.training for module in net.modules())
    finally:
        net.eval()


def test_other_models_and_other_inputs_are_said(net: nn.Module, file: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"output of shape \(3, 6\) where the model gives \(3, 2\)"):
        verify(nn.Sequential(nn.Flatten(), nn.Linear(432, 2)), file, [IMAGES])
    with pytest.raises(ModelFileError, match=r"cannot run it on inputs of shape \(3, 3, 8, 8\)"):
        verify(net, file, [IMAGES[..., :8, :8]])
    with pytest.raises(DataError, match="no batches to compare on"):
        verify(net, file, [])
    with pytest.raises(ModelFileError, match=r"absent\.onnx: no such file"):
        verify(net, tmp_path / "absent.onnx", [IMAGES])


def test_a_run_that_fails_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.onnx"
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["input", "shape"], ["output"])],
        "two images only",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("batch", 3, 12, 12))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([2, 432]), "shape")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    assert verify(nn.Flatten(), path, [IMAGES[:2]]).ok
    with pytest.raises(
        ModelFileError, match=r"two\.onnx: ONNX Runtime cannot run it on inputs of shape \(3, 3, 12, 12\)"
    ):
        verify(nn.Flatten(), path, [IMAGES])
    assert tuple(capfd.readouterr()) == ("", "")


def test_text_is_readable() -> None:
    good = Verification(1e-6, 5e-7, 1.0, 4, 9, 1e-4)
    assert str(good) == (
        "same outputs as torch on 9 images in 4 batches: largest difference 1.0e-06, 5.0e-07 of the output's "
        "scale (tolerance 1e-04), top-1 agreement 100.0 %"
    )
    assert "top-1" not in str(Verification(1e-6, 5e-7, None, 4, 9, 1e-4))
