"""A user's own architecture, given as `package.module:function`."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from .errors import ArchitectureError


def build_own(spec: str, classes: int | None) -> nn.Module:
    """Call a user's function and check that it returns a network.

    Args:
        spec: `package.module:function`; the module is importable as usual or from the current directory.
        classes: passed as `num_classes`, or as `classes` if the function takes that; None passes nothing.

    Returns:
        What the function returned.

    Raises:
        ArchitectureError: the module or the function is not there, it raises, it takes no number of classes
            though one was given, or it returns something else than an nn.Module.
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise ArchitectureError(f"{spec}: write package.module:function, for example my_net:build.")
    if module_name.endswith(".py") or "/" in module_name:
        raise ArchitectureError(
            f"{spec}: write the module as Python imports it, for example "
            f"{Path(module_name).stem}:{function_name}, and run from the file's folder."
        )
    with _current_directory_importable():
        module = _import(spec, module_name)
        function = _find(spec, module, function_name)
        arguments = {} if classes is None else {_classes_keyword(spec, function): classes}
        try:
            model = function(**arguments)
        # A user's function may raise anything, and a script without a main guard may even exit.
        except (Exception, SystemExit) as error:
            raise ArchitectureError(
                f"{spec}: the function raised {_say(error)}; it must work with {_call(arguments)}."
            ) from error
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"{spec}: the function returned {type(model).__name__}; it must return a torch.nn.Module."
        )
    return model


def _import(spec: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if module_name != absent and not module_name.startswith(f"{absent}."):
            raise ArchitectureError(
                f"{spec}: importing {module_name} failed because it imports {absent}, which is not "
                f"installed; install it first."
            ) from error
        raise ArchitectureError(
            f"{spec}: no module {absent}; install it, or run from the folder that holds it (now {Path.cwd()})."
        ) from error
    except (Exception, SystemExit) as error:
        raise ArchitectureError(
            f"{spec}: importing {module_name} raised {_say(error)}; it must import without errors."
        ) from error


def _find(spec: str, module: ModuleType, function_name: str) -> Callable[..., object]:
    function: object = getattr(module, function_name, None)
    if function is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        have = ", ".join(sorted(public)[:6]) or "nothing callable"
        raise ArchitectureError(
            f"{spec}: {module.__name__} has no {function_name}; it has {have}; name a function that returns "
            f"the network."
        )
    if not callable(function):
        raise ArchitectureError(
            f"{spec}: {function_name} is a {type(function).__name__}, not a function; name a function that "
            f"returns the network."
        )
    return function


def _classes_keyword(spec: str, function: Callable[..., object]) -> str:
    parameters = inspect.signature(function).parameters
    for keyword in ("num_classes", "classes"):
        if keyword in parameters:
            return keyword
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return "num_classes"
    raise ArchitectureError(
        f"{spec}: the function takes neither num_classes nor classes, so the number of classes cannot be "
        f"set; add such a parameter or leave the number out."
    )


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    # A console script has its own folder, not the current one, at the head of sys.path.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _say(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _call(arguments: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items()) or "no arguments"
