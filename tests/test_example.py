"""The examples in README, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dprp.models import DIGITS_WEIGHTS, build, info, load_data, load_weights, loader, preprocess_for

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize(("number", "says"), [(0, "top-1"), (1, "speed-up")])
def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, says: str
) -> None:
    pytest.importorskip("sklearn", reason="the digits data needs scikit-learn")
    from dprp.export import read_metadata, to_onnx

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = build("digits_cnn")
    load_weights(model, DIGITS_WEIGHTS)
    preprocess = preprocess_for(info("digits_cnn"))
    data = load_data("digits")
    train, test = loader(data.train(preprocess), 64, shuffle=True), loader(data.test(preprocess), 64)
    example = next(iter(test))[0][:1]
    to_onnx(model, example, "dense.onnx")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    assert blocks[number].count("\n") <= 8
    names = {"model": model, "example": example, "train": train, "test": test}
    exec(compile(blocks[number], "README.md", "exec"), names)
    assert bool(read_metadata("small.onnx")) == (number == 0)  # the steps by hand write what they are told to
    assert Path("small.onnx").stat().st_size < 0.7 * Path("dense.onnx").stat().st_size
    assert says in capsys.readouterr().out
