"""The application: typer's object, which the verbs register with, and its entry point."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.main import get_command

from ..allocator import keep_freed_memory
from .errors import exit_code

app = typer.Typer(
    name="dprp",
    help="Low-rank compression of pretrained CNNs: factorise, fine-tune with rank pruning, export verified ONNX.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print("dprp", version("dprp"))
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(argv: list[str] | None = None) -> int:
    """Runs `dprp`.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        The exit code: 0, 2 after a user's mistake, 130 when interrupted.
    """
    keep_freed_memory()
    from . import verbs  # noqa: F401  they register themselves

    return exit_code(lambda: get_command(app).main(args=argv, prog_name="dprp", standalone_mode=False))
