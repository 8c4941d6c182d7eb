from pathlib import Path

import pytest
import torch

from dprp.models import (
    DIGITS_WEIGHTS,
    ModelsError,
    build,
    digits_cnn,
    info,
    load_data,
    load_weights,
    loader,
    preprocess_for,
    read_state_dict,
)
from dprp.models.pretrain_digits import main, pretrain, top1, write


def test_shipped_weights_reach_98_percent_on_the_test_split() -> None:
    model = build("digits_cnn")
    load_weights(model, DIGITS_WEIGHTS)
    test = load_data("digits").test(preprocess_for(info("digits_cnn")))
    assert len(test) == 500
    assert top1(model, loader(test, 250)) >= 0.98


def test_shipped_weights_are_small() -> None:
    assert DIGITS_WEIGHTS.stat().st_size < 1_000_000
    assert sum(parameter.numel() for parameter in digits_cnn().parameters()) < 250_000


def test_pretraining_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, accuracy = pretrain(seed=1, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second, _ = pretrain(seed=1, epochs=1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert accuracy > 0.15, "one epoch is little, but better than chance"


def test_write_never_replaces_unasked_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    model = digits_cnn()
    write(model, path)
    content = path.read_bytes()
    with pytest.raises(ModelsError, match=r"exists already; pass --force"):
        write(digits_cnn(), path)
    assert path.read_bytes() == content
    write(digits_cnn(), path, force=True)
    assert path.read_bytes() != content
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]
    assert set(read_state_dict(path)) == set(model.state_dict())


def test_command_says_one_sentence_and_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "none" / "w.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
