"""From a signature to a verb on the command line.

Each verb is a plain function `name` in a module of that name, which is loaded when it is called. What it takes from
the command line stands in `verbs`; --json, --recipe and --print-recipe are everyone's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from .app import app
from .console import show, working
from .recipes import read_recipe, written
from .values import numbers_from, shape_from

_PANEL = "Recipe"
_READERS: dict[str, Callable[[str | None], Any]] = {
    "input_shape": shape_from,
    "mean": partial(numbers_from, "--mean"),
    "std": partial(numbers_from, "--std"),
}
"""Options that the command line takes as text."""

_JSON = typer.Option("--json", help="One JSON document on stdout, for machines.")
_PRINT_RECIPE = typer.Option(
    "--print-recipe", rich_help_panel=_PANEL, help="Print all options as a recipe, and do no more."
)


def command(signature: Callable[..., None]) -> Callable[..., None]:
    """Registers a verb: a function whose name, docstring and annotated parameters are all that counts of it."""
    name = signature.__name__
    hints = get_type_hints(signature, include_extras=True)
    own = inspect.signature(signature).parameters
    keys = {parameter: _key(parameter, hints[parameter]) for parameter in own}

    def run(*, json: bool, recipe: Path | None, print_recipe: bool, **options: Any) -> None:
        text = written(name, {keys[parameter]: _plain(value) for parameter, value in options.items()})
        if print_recipe:
            print(text, end="", flush=True)
            return
        with working():
            verb = getattr(import_module(f".{name}", __package__), name)
            takes = inspect.signature(verb).parameters
            taken = {key: _taken(key, value) for key, value in options.items() if key in takes}
            answer = verb(**taken, **({"recipe": text} if "recipe" in takes else {}))
        show(answer, as_json=json)

    def take(context: typer.Context, recipe: Path | None) -> Path | None:
        """What a recipe says becomes what options are where the command line says nothing."""
        if recipe is not None:
            several = {
                str(one.name): getattr(one, "multiple", False) or one.nargs == -1 for one in context.command.params
            }
            found = read_recipe(recipe, {key: several[parameter] for parameter, key in keys.items()})
            context.default_map = {parameter: found[key] for parameter, key in keys.items() if key in found}
        return recipe

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [one.replace(annotation=hints[one.name], kind=keyword) for one in own.values()]
    for extra, default, annotation in (
        ("json", False, Annotated[bool, _JSON]),
        ("recipe", None, Annotated[Path | None, _recipe(take)]),
        ("print_recipe", False, Annotated[bool, _PRINT_RECIPE]),
    ):
        parameters.append(inspect.Parameter(extra, keyword, default=default, annotation=annotation))
    run.__name__, run.__doc__ = name, signature.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command(name)(run)
    return signature


def _recipe(take: Callable[..., Path | None]) -> Any:
    return typer.Option(
        "--recipe",
        metavar="FILE",
        is_eager=True,
        callback=take,
        show_default=False,
        rich_help_panel=_PANEL,
        help="Options from a .yaml or .toml; those given here go first.",
    )


def _key(parameter: str, hint: Any) -> str:
    """An option's name in recipes: the long one of the command line, without its dashes."""
    for about in get_args(hint)[1:]:
        # Behind Annotated, typer takes the first flag for a default at first.
        for flag in (getattr(about, "default", None), *(getattr(about, "param_decls", None) or ())):
            if isinstance(flag, str) and flag.startswith("--"):
                return flag.removeprefix("--")
    return parameter.replace("_", "-")


def _taken(parameter: str, value: Any) -> Any:
    """A value as the verb's function takes it."""
    if parameter in _READERS:
        return _READERS[parameter](value)
    if value is None and parameter in ("forms", "keep"):
        return ()
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, Enum) else value
