"""From a dataclass of options to a verb on the command line.

Each verb is a plain function `name` in a module of that name, which is loaded when it is called, and takes the
options. --json, --recipe and --print-recipe are everyone's.
"""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ..chain.folder import RECIPE
from ..errors import OptionError
from .app import app
from .console import show, working
from .fields import option_fields
from .recipes import read_recipe, written

Options = TypeVar("Options", bound=type)

_PANEL = "Recipe"
_JSON = typer.Option("--json", help="One JSON document on stdout, for machines.")
_PRINT_RECIPE = typer.Option(
    "--print-recipe", rich_help_panel=_PANEL, help="Print all options as a recipe, and do no more."
)


def command(options: Options) -> Options:
    """Registers a verb: `ConvertOptions` becomes `dprp convert`, which calls `convert` in the module `convert`."""
    name = options.__name__.removesuffix("Options").lower()
    known = option_fields(options)

    def run(*, json: bool, recipe: Path | None, print_recipe: bool, **given: Any) -> int:
        asked = options(**{key: known[key].read(value) for key, value in given.items()})
        if print_recipe:
            print(written(name, asked), end="", flush=True)
            return 0
        if name != "finetune" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise OptionError(f"{name} runs in one process; dprp finetune runs in several, from its result")
        with working():
            answer = getattr(import_module(f".{name}", __package__), name)(asked)
        show(answer, as_json=json)
        return getattr(answer, "exit_code", 0)

    def take(context: typer.Context, recipe: Path | None) -> Path | None:
        """What a recipe says becomes what options are where the command line says nothing."""
        if recipe is not None:
            context.default_map = {**(context.default_map or {}), **read_recipe(recipe, options)}
        return recipe

    def take_run(context: typer.Context, resume: Path | None) -> Path | None:
        """The same, of the recipe that a run keeps in its folder."""
        take(context, None if resume is None else resume / RECIPE)
        return resume

    if "resume" in known:
        known["resume"].info.is_eager, known["resume"].info.callback = True, take_run

    parameters = [one.parameter for one in known.values()]
    for extra, default, annotation in (
        ("json", False, Annotated[bool, _JSON]),
        ("recipe", None, Annotated[Path | None, _recipe(take)]),
        ("print_recipe", False, Annotated[bool, _PRINT_RECIPE]),
    ):
        parameters.append(
            inspect.Parameter(extra, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    run.__name__, run.__doc__ = name, inspect.cleandoc(options.__doc__ or "").partition("\n\nAttributes:")[0]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command(name)(run)
    return options


def _recipe(take: Any) -> Any:
    return typer.Option(
        "--recipe",
        metavar="FILE",
        is_eager=True,
        callback=take,
        show_default=False,
        rich_help_panel=_PANEL,
        help="Options from a .yaml or .toml; those given here go first.",
    )
