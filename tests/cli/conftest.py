"""The command line in this process, and a compressed digits network that many tests start from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dprp.converter.cli import main
from dprp.models import DIGITS_WEIGHTS

ROOT = Path(__file__).parents[2]

# Of commands whose last word, the checkpoint, is still to come.
COMPRESS = "compress digits_cnn --data digits --epochs 0 -o out --budget macs=0.5 --checkpoint "
CONVERT = "convert digits_cnn -o out.safetensors --budget macs=0.5 --checkpoint "


@dataclass(frozen=True)
class Run:
    """What a command did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its answer; fails when stdout holds anything else."""
        assert self.code == 0, self.err
        return json.loads(self.out)


Dprp = Callable[..., Run]
Refused = Callable[..., None]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def dprp(capsys: pytest.CaptureFixture[str]) -> Dprp:
    """`dprp` as a function of its arguments."""

    def run(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Run(code, out, err)

    return run


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.fixture
def refused(dprp: Dprp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command in a folder of its own, and checks the refusal."""
    monkeypatch.chdir(tmp_path)

    def run(arguments: str, *says: str, **values: object) -> None:
        before = _tree(tmp_path)
        run = dprp(*(word.format(**values) for word in arguments.split()))
        assert run.code == 2, run
        assert run.out == ""
        assert run.err.count("\n") == 1, run.err
        assert run.err.startswith("dprp: ")
        assert "Traceback" not in run.err
        for text in says:
            assert text.format(**values) in run.err
        assert _tree(tmp_path) == before

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network at 0.6 of its MACs, as `dprp convert` writes it; not to be written to."""
    from dprp.converter.cli.convert import convert
    from dprp.converter.cli.verbs import ConvertOptions

    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    convert(
        ConvertOptions(model="digits_cnn", checkpoint=DIGITS_WEIGHTS, budget="macs=0.6", output=path, device="cpu")
    )
    return path


@pytest.fixture(scope="session")
def onnx(small: Path) -> Path:
    """`small` as `dprp export` writes it; not to be written to."""
    from dprp.converter.cli.export import export
    from dprp.converter.cli.verbs import ExportOptions

    path = small.with_suffix(".onnx")
    export(ExportOptions(model=str(small), output=path, device="cpu"))
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and checkpoints, which are no part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs {folder.name} with CIFAR-10 and its checkpoints in ../shared, beside the repository")
    return folder


@pytest.fixture
def digits_npz(tmp_path: Path) -> Callable[..., str]:
    """Makes an npz of 8 x 8 noise with the labels given, and returns it as DATA."""

    def make(labels: list[int]) -> str:
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8)
        path = tmp_path / "images.npz"
        np.savez(path, x_train=images, y_train=np.array(labels), x_test=images, y_test=np.array(labels))
        return f"npz:{path}"

    return make
