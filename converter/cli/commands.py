"""Verbs on the command line: each takes a recipe besides its own options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .app import app
from .recipes import read_recipe, running, written

_OURS = ("recipe", "print_recipe", "json")
_PANEL = "Recipe"


def _take(context: typer.Context, recipe: Path | None) -> Path | None:
    """What a recipe says becomes what options are where the command line says nothing."""
    if recipe is not None:
        options = [one for one in context.command.params if one.name not in (*_OURS, "help")]
        repeatable = {str(one.name): bool(getattr(one, "multiple", False) or one.nargs == -1) for one in options}
        context.default_map = read_recipe(recipe, repeatable)
    return recipe


_Recipe = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        is_eager=True,
        callback=_take,
        show_default=False,
        rich_help_panel=_PANEL,
        help="Options from a .yaml or .toml; those given here go first.",
    ),
]
_PrintRecipe = Annotated[
    bool,
    typer.Option("--print-recipe", rich_help_panel=_PANEL, help="Print a recipe with all options, and do no more."),
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Registers a function as a verb, and adds --recipe and --print-recipe to its options."""
    hints = get_type_hints(function, include_extras=True)

    @wraps(function)
    def run(*, recipe: Path | None = None, print_recipe: bool = False, **options: Any) -> None:
        text = written(function.__name__, {name: value for name, value in options.items() if name not in _OURS})
        if print_recipe:
            print(text, end="", flush=True)
            return
        token = running.set(text)
        try:
            function(**options)
        finally:
            running.reset(token)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        one.replace(annotation=hints[one.name], kind=keyword)
        for one in inspect.signature(function).parameters.values()
    ]
    parameters.append(inspect.Parameter("recipe", keyword, default=None, annotation=_Recipe))
    parameters.append(inspect.Parameter("print_recipe", keyword, default=False, annotation=_PrintRecipe))
    del run.__wrapped__  # typer would look through
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command()(run)
    return run
