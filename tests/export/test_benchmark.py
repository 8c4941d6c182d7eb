from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from dprp.export import (
    BenchmarkError,
    BenchmarkResult,
    Environment,
    ExportError,
    FileResult,
    ModelFileError,
    benchmark,
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Every measuring process that the test starts."""
    from dprp.export import process

    processes: list[subprocess.Popen[str]] = []
    start = process.WorkerProcess.__init__

    def noted(self: process.WorkerProcess, label: str, timeout_s: float) -> None:
        start(self, label, timeout_s)
        processes.append(self._process)

    monkeypatch.setattr(process.WorkerProcess, "__init__", noted)
    return processes


def _all_gone(processes: list[subprocess.Popen[str]]) -> bool:
    return all(process.poll() is not None for process in processes)


def _squares(path: Path, size: int, count: int, shape: tuple[object, ...] = ("batch",)) -> Path:
    """A chain of `count` dense layers, size x size, on inputs of shape (*shape, size)."""
    names = ["input", *(f"h{index}" for index in range(1, count)), "output"]
    weight = np.eye(size, dtype=np.float32)
    # A sum per layer, so that no optimiser can multiply the weights beforehand.
    nodes = []
    for index in range(count):
        nodes.append(helper.make_node("MatMul", [names[index], "w"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [names[index + 1]]))
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (*shape, size))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _squares(tmp_path_factory.mktemp("small") / "small.onnx", 64, 2)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2000 times the multiply-adds of `small`."""
    return _squares(tmp_path_factory.mktemp("big") / "big.onnx", 512, 60)


def test_figures_of_two_files(small: Path, big: Path, started: list[subprocess.Popen[str]]) -> None:
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > 200e6, torch.__version__
    result = benchmark([big, small], rounds=6, batch=3)
    assert len(started) == 2
    assert _all_gone(started)
    slow, fast = result.files
    assert (slow.path, fast.path) == (str(big), str(small))
    assert (slow.size_bytes, fast.size_bytes) == (big.stat().st_size, small.stat().st_size)
    assert slow.speedup == 1.0
    ratios = [a / b for a, b in zip(slow.round_medians_ms, fast.round_medians_ms, strict=True)]
    assert fast.speedup == pytest.approx(np.median(ratios))
    for file in result.files:
        assert 0 < file.median_ms <= file.p90_ms
        assert file.load_ms > 0
        assert file.images_per_s == pytest.approx(3000 / file.median_ms)
        assert len(file.round_medians_ms) == 6
        assert 5 <= file.runs_per_round <= 200
        # A worker that loaded torch, or inherited the peak of this process, would show.
        assert file.peak_memory_bytes is not None
        assert 10e6 < file.peak_memory_bytes < 150e6
    assert result.environment == replace(
        result.environment, threads=1, batch=3, onnxruntime=onnxruntime.__version__, rounds=6
    )
    assert result.environment.cpu
    assert json.loads(json.dumps(result.to_dict()))["files"][1]["path"] == str(small)


def test_runs_per_round_and_threads_are_kept(small: Path) -> None:
    result = benchmark([str(small)], rounds=2, runs_per_round=3, threads=2)
    assert result.files[0].runs_per_round == 3
    assert result.environment.threads == 2


def test_files_take_turns_in_changing_order(small: Path, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dprp.export import process

    asked: list[tuple[str, str]] = []
    ask = process.WorkerProcess.ask

    def listening(self: process.WorkerProcess, do: str, **options: Any) -> dict[str, Any]:
        asked.append((do, self._label))
        return ask(self, do, **options)

    monkeypatch.setattr(process.WorkerProcess, "ask", listening)
    benchmark([small, big], rounds=3, runs_per_round=1, warmup_ms=0)
    a, b = str(small), str(big)
    assert [label for do, label in asked if do == "round"] == [a, b, b, a, a, b]
    first_round = next(index for index, (do, _) in enumerate(asked) if do == "round")
    assert {do for do, _ in asked[:first_round]} == {"load"}  # runs_per_round given: nothing to estimate


def test_bad_files_are_named_and_no_process_stays(
    small: Path, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"not a model")
    with pytest.raises(BenchmarkError, match=r"corrupt\.onnx: ONNX Runtime .* cannot load it"):
        benchmark([small, corrupt])
    with pytest.raises(ModelFileError, match=r"absent\.onnx: no such file"):
        benchmark([small, tmp_path / "absent.onnx"])
    fixed = _squares(tmp_path / "fixed.onnx", 8, 1, (4,))
    with pytest.raises(BenchmarkError, match=r"fixed\.onnx: has a fixed batch of 4, asked for 1\. Pass batch=4"):
        benchmark([fixed])
    free = _squares(tmp_path / "free.onnx", 8, 1, ("batch", "height"))
    with pytest.raises(BenchmarkError, match=r"free dimensions other than the batch \(batch, height, 8\)"):
        benchmark([free])
    assert started
    assert _all_gone(started)


def test_a_process_that_hangs_or_dies_is_an_error_and_goes(
    small: Path, started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BenchmarkError, match=r"small\.onnx: no answer from its measuring process within 0\.01 s"):
        benchmark([small], timeout_s=0.01)

    from dprp.export import process

    ask = process.WorkerProcess.ask

    def killing(self: process.WorkerProcess, do: str, **options: Any) -> dict[str, Any]:
        if do == "round":
            self._process.kill()
        return ask(self, do, **options)

    monkeypatch.setattr(process.WorkerProcess, "ask", killing)
    with pytest.raises(BenchmarkError, match=r"small\.onnx: its measuring process died with exit code -9"):
        benchmark([small])
    assert started
    assert _all_gone(started)


def test_interrupt_leaves_no_process(
    small: Path, big: Path, started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dprp.export import process

    def interrupted(self: process.WorkerProcess, do: str, **options: Any) -> dict[str, Any]:
        assert len(started) == 2  # both run when the interrupt comes
        assert all(process.poll() is None for process in started)
        raise KeyboardInterrupt

    monkeypatch.setattr(process.WorkerProcess, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark([small, big])
    assert _all_gone(started)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for whoever adopted it does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return not Path("/proc").is_dir()


def test_a_worker_ends_with_the_one_that_started_it(small: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from dprp.export.process import WorkerProcess\n"
        "worker = WorkerProcess('x', 60.0)\n"
        "worker.receive()\n"
        "print(worker._process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not _runs(pid):
            return
        time.sleep(0.05)
    pytest.fail(f"worker {pid} outlived its parent")


def test_a_script_without_main_guard_runs_once(small: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from dprp.export import benchmark\n"
        f"print('start'); print(benchmark([{str(small)!r}], rounds=1, runs_per_round=1))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.count("start") == 1
    assert "small.onnx" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threads": 0}, "threads: 0 is not at least 1"),
        ({"batch": -1}, "batch: -1 is not at least 1"),
        ({"rounds": 0}, "rounds: 0 is not at least 1"),
        ({"runs_per_round": 0}, "runs_per_round: 0 is not at least 1"),
    ],
)
def test_options_out_of_range(small: Path, options: dict[str, int], text: str) -> None:
    with pytest.raises(ExportError, match=text):
        benchmark([small], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("paths", [[], "model.onnx", Path("model.onnx")])
def test_paths_must_be_a_list(paths: Any) -> None:
    with pytest.raises(ExportError, match="is not a list of files"):
        benchmark(paths)


def _result(*rounds_ms: tuple[float, ...]) -> BenchmarkResult:
    files = tuple(
        FileResult(f"/models/{name}.onnx", 2_500_000, 10.0, rounds[0], rounds[0], 100.0, 90_000_000, 1.5, 7, rounds)
        for name, rounds in zip("abcd", rounds_ms, strict=False)
    )
    return BenchmarkResult(files, Environment("A CPU", 1, 1, "1.0", len(rounds_ms[0])))


def test_files_whose_rounds_disagree_are_not_ranked() -> None:
    clear = _result((2.0,) * 10, (1.0,) * 8 + (3.0,) * 2)
    assert clear.notes == ()
    unclear = _result((2.0,) * 10, (1.0,) * 7 + (3.0,) * 3)
    assert unclear.notes == (
        "a.onnx and b.onnx cannot be ranked: the first was faster in 3 of 10 rounds, the second in 7. "
        "Use a quieter machine or more rounds.",
    )
    assert str(unclear).endswith(f"note: {unclear.notes[0]}")
    assert unclear.to_dict()["notes"] == list(unclear.notes)


def test_many_unclear_pairs_are_counted_not_listed() -> None:
    rounds = (2.0, 1.0) * 5
    text = str(_result(*(rounds[shift:] + rounds[:shift] for shift in (0, 1, 0, 1))))
    assert text.count("cannot be ranked") == 3
    assert text.splitlines()[-1] == "note: so it is with 3 more pairs of files."


def test_table_is_aligned() -> None:
    head, rule, *rows = str(_result((2.0,), (12.25,))).splitlines()
    assert " ".join(head.split()) == "file size MB load ms median ms p90 ms images/s peak MB speed-up"
    assert set(rule) == {"-"}
    assert {len(line) for line in (head, rule, *rows[:2])} == {len(head)}
    assert rows[1].split() == ["b.onnx", "2.500", "10.0", "12.250", "12.250", "100.0", "90", "1.50x"]
    assert rows[2] == "A CPU, 1 thread, batch 1, ONNX Runtime 1.0, 1 interleaved rounds"
