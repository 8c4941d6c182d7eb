"""The installed `dprp`, in a process of its own: exit codes, streams, and what it loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dprp.models import DIGITS_WEIGHTS, build


def _run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("dprp")
    return subprocess.run(
        [program, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "40", **environment},
    )


def test_version_and_help(tmp_path: Path) -> None:
    assert _run("--version", cwd=tmp_path).stdout.startswith("dprp 0.")
    helped = _run("--help", cwd=tmp_path)
    assert helped.returncode == 0
    for verb in ("survey", "convert", "finetune", "evaluate", "export", "benchmark", "compress", "demo", "env"):
        assert verb in helped.stdout


def test_env_says_what_a_bug_report_needs(tmp_path: Path) -> None:
    told = json.loads(_run("env", "--json", cwd=tmp_path).stdout)
    assert told["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert told["cpu_features"] == torch.backends.cpu.get_cpu_capability()
    assert "CPUExecutionProvider" in told["providers"]
    assert told["cores"] >= 1
    read = _run("env", cwd=tmp_path).stdout
    assert all(f"{name} " in read for name in told["versions"])
    assert told["cpu"] in read


def test_the_shell_completes_verbs(tmp_path: Path) -> None:
    asked = {"_DPRP_COMPLETE": "complete_bash", "COMP_WORDS": "dprp co", "COMP_CWORD": "1"}
    assert _run(cwd=tmp_path, **asked).stdout.split() == ["compress", "convert"]


def test_mistakes_are_one_unbroken_line_and_exit_2(tmp_path: Path) -> None:
    torch.save(build("cifar_resnet20").state_dict(), tmp_path / "other.pth")
    (tmp_path / "[bold]").mkdir()
    before = sorted(tmp_path.rglob("*"))
    start = ("compress", "digits_cnn", "--data", "digits", "--epochs", "1")
    for arguments, says in (
        ((*start, "--budget", "macs=0.5", "-o", "out", "--checkpoint", "other.pth"), "pass the architecture that"),
        ((*start, "--budget", "macs=0.5", "-o", "[bold]", "--checkpoint", DIGITS_WEIGHTS), "[bold]: exists already"),
    ):
        run = _run(*arguments, cwd=tmp_path)
        assert run.returncode == 2, run
        assert run.stdout == ""
        assert run.stderr.count("\n") == 1, run.stderr
        assert says in run.stderr
        assert "\x1b" not in run.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_demo(tmp_path: Path) -> None:
    run = _run("demo", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    told = json.loads((tmp_path / "dprp-demo" / "summary.json").read_text())
    assert told["compressed"]["macs"] <= 0.5 * told["dense"]["macs"]
    assert told["compressed"]["top1"] > 98
    assert told["compressed"]["onnx_bytes"] < told["dense"]["onnx_bytes"]
    assert f"{told['compressed']['top1']:.2f} %" in run.stdout
    assert f"{told['compressed']['macs']:,}" in run.stdout
    assert run.stdout.rstrip().endswith("files in dprp-demo")
    assert "\x1b" not in run.stdout + run.stderr


def test_stdout_holds_nothing_but_the_json(tmp_path: Path) -> None:
    lines = ("from dprp.models import digits_cnn", "print('importing')", "def net():", "    print('building')")
    (tmp_path / "loud.py").write_text("\n".join([*lines, "    return digits_cnn()"]))
    run = _run("survey", "loud:net", "--input", "1x8x8", "--json", cwd=tmp_path)
    assert json.loads(run.stdout)["input_shape"] == [1, 8, 8]
    assert run.stderr == "importing\nbuilding\n"


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["--version"], ["compress", "--budgit"]])
def test_help_loads_no_torch(arguments: list[str]) -> None:
    script = f"""
import sys
from dprp.converter.cli import main
assert main({arguments!r}) == {2 if arguments[-1] == "--budgit" else 0}
assert not {{"torch", "onnxruntime", "numpy"}} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("module", ["dprp.converter", "dprp.converter.cli", "dprp.export"])
def test_importing_a_package_loads_no_torch(module: str) -> None:
    script = f"import sys, {module}; assert not {{'torch', 'onnxruntime'}} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_an_interrupt_while_torch_loads_is_one_line(tmp_path: Path) -> None:
    """A torch that is interrupted in the middle of its own import stands in for a user with quick fingers."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    script = "import sys; from dprp.converter.cli import main; sys.exit(main(['survey', 'digits_cnn']))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "dprp: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs ulimit")
def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path) -> None:
    old = {name: f"older {name}" for name in ("a.safetensors", "a.json", "a.onnx")}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    start = ("digits_cnn", "--checkpoint", str(DIGITS_WEIGHTS), "--force")
    for arguments in (
        ("convert", *start, "--budget", "macs=0.5", "-o", "a.safetensors", "--save-plan", "a.json"),
        ("plan", *start, "--budget", "macs=0.5", "-o", "a.json"),
        ("export", *start, "-o", "a.onnx"),
        (
            "compress",
            *start,
            *["--data", "digits", "--budget", "macs=0.5", "--epochs", "0", "--polish", "2", "-o", "result"],
        ),
    ):
        program = Path(sys.executable).with_name("dprp")
        # A size limit fails as a full disk does: part of the file is written, then an error comes.
        command = ["bash", "-c", 'ulimit -f 1; exec "$0" "$@"', str(program), *arguments]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert run.returncode == 2, run
        told = run.stderr.splitlines()[-1]
        target = next(word for word in arguments if word.startswith(("a.", "result")))
        assert told.startswith(f"dprp: {target}") or told.startswith(f"dprp: {tmp_path / target}"), run.stderr
        assert "cannot be written (" in told
        assert "nothing was changed" in told
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old
