from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dprp.export import ExportError, LatencyTable, ModelFileError, NetworkTime, PlainLayer, time_network, to_onnx
from dprp.export.latency_cache import default_folder
from dprp.export.network_time import _layers_share
from dprp.export.profiling import Kernel, Run

A = (PlainLayer("conv2d", 8, 8, height=6, width=6),)
B = (PlainLayer("linear", 16, 8),)
C = (PlainLayer("linear", 16, 4, bias=False), PlainLayer("linear", 4, 8))


class Counted(LatencyTable):
    """A table that counts what it measured."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.calls: list[tuple[int, int]] = []
        super().__init__(threads=threads, folder=folder, on_measured=lambda *call: self.calls.append(call))


def cache_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    first = Counted(tmp_path / "made" / "when needed")
    times_ms = first.measure([A, B, A])
    assert set(times_ms) == {A, B}
    assert first.calls == [(1, 2), (2, 2)]
    assert first.measure([B, A]) == times_ms
    second = Counted(tmp_path / "made" / "when needed")
    assert second.measure([A]) == {A: times_ms[A]}
    assert len(first.calls) == 2
    assert second.calls == []
    assert second.measure([A, C]).keys() == {A, C}
    assert second.calls == [(1, 1)]
    assert second.measure([]) == {}


def test_threads_have_tables_of_their_own(tmp_path: Path) -> None:
    Counted(tmp_path).measure([A])
    two = Counted(tmp_path, threads=2)
    two.measure([A])
    assert len(two.calls) == 1
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ExportError, match=r"threads: 0 is not at least 1"):
        LatencyTable(threads=0, folder=tmp_path)


def test_two_tables_share_a_folder(tmp_path: Path) -> None:
    one, other = Counted(tmp_path), Counted(tmp_path)
    one_ms, other_ms = one.measure([A]), other.measure([B])
    third = Counted(tmp_path)
    assert third.measure([A, B]) == one_ms | other_ms
    assert one.measure([B]) == other_ms
    assert (len(one.calls), len(other.calls), len(third.calls)) == (1, 1, 0)


def test_a_file_that_does_not_read_is_written_anew(tmp_path: Path) -> None:
    Counted(tmp_path).measure([A])
    file = cache_file(tmp_path)
    whole = file.read_bytes()
    content = json.loads(whole)
    foreign = json.dumps(content | {"cpu": "another"}).encode()
    negative = json.dumps(content | {"times_ms": {str(A[0]): -1}}).encode()
    unreal = json.dumps(content | {"times_ms": {str(A[0]): float("nan")}}).encode()
    bad = [whole[: len(whole) // 2], b"", b"[]", b"\xff\xfe", b'{"times_ms": []}', foreign, negative, unreal]
    for broken in bad:
        file.write_bytes(broken)
        again = Counted(tmp_path)
        times_ms = again.measure([A])
        assert len(again.calls) == 1, broken
        assert Counted(tmp_path).measure([A]) == times_ms
        assert cache_file(tmp_path) == file


def test_works_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    table = Counted(tmp_path / "file" / "folder")
    assert table.measure([A]) == table.measure([A])
    assert len(table.calls) == 1


def test_all_chains_are_checked_before_any_is_measured(tmp_path: Path) -> None:
    table = Counted(tmp_path)
    with pytest.raises(ExportError, match="cannot follow"):
        table.measure([A, (A[0], B[0])])
    assert table.calls == []
    assert not list(tmp_path.iterdir())


def test_the_share_of_the_layers_is_that_of_their_kernels() -> None:
    kernels = (Kernel("a", "Conv", 30.0), Kernel("b", "Relu", 12.0), Kernel("c", "Gemm", 10.0))
    assert _layers_share(Run(kernels, 60.0), 2.0) == 36 / 46


def test_a_network_takes_at_least_what_its_layers_take(tmp_path: Path) -> None:
    net = nn.Sequential(*(part for _ in range(8) for part in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())))
    to_onnx(net.eval(), torch.randn(1, 32, 28, 28), tmp_path / "net.onnx")
    time = time_network(tmp_path / "net.onnx")
    assert 0 < time.layers_ms <= time.total_ms


def test_prediction_uses_ratios_of_the_table_only() -> None:
    time = NetworkTime(total_ms=10.0, layers_ms=8.0)
    assert time.rest_ms == 2.0
    assert time.predict_ms(8.0, 4.0) == time.predict_ms(16.0, 8.0) == 6.0
    assert time.predict_ms(5.0, 5.0) == 10.0


def test_missing_networks_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.onnx: no such file"):
        time_network(tmp_path / "none.onnx")


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    user = tmp_path / "user"
    monkeypatch.setattr(Path, "home", lambda: user)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "named"))
    assert default_folder() == tmp_path / "named" / "dprp" / "latency"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    homes = {"linux": user / ".cache", "darwin": user / "Library" / "Caches", "win32": tmp_path / "local"}
    for platform, home in homes.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert default_folder() == home / "dprp" / "latency"


def test_no_home_means_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert default_folder() is None


def test_the_table_does_not_load_torch() -> None:
    code = "import sys, dprp.export.latency_table, dprp.export.network_time; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
