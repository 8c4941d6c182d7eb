from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

import dprp.export
from dprp.export import ExportError


def test_all_is_the_public_surface() -> None:
    assert sorted(dprp.export.__all__) == dprp.export.__all__
    for name in dprp.export.__all__:
        assert getattr(dprp.export, name).__module__.startswith("dprp.export.")
        assert inspect.getdoc(getattr(dprp.export, name))
    assert set(dprp.export.__all__) <= set(dir(dprp.export))


def test_names_for_type_checkers_are_the_same() -> None:
    tree = ast.parse(inspect.getsource(dprp.export))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = [alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(imported) == dprp.export.__all__


def test_errors_form_one_tree() -> None:
    errors = [getattr(dprp.export, name) for name in dprp.export.__all__ if name.endswith("Error")]
    assert all(issubclass(error, ExportError) for error in errors)
    assert issubclass(ExportError, ValueError)


def test_unknown_names_fail_as_usual() -> None:
    with pytest.raises(AttributeError, match=r"module 'dprp\.export' has no attribute 'to_onyx'"):
        _ = dprp.export.to_onyx


def test_measuring_does_not_load_torch() -> None:
    code = "import sys, dprp.export.worker, dprp.export.benchmarking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
