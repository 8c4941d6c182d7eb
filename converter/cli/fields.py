"""From a dataclass of options to what typer takes, and back."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer import Option
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from ..chain.values import Text
from ..errors import OptionError

_NO_PANEL = ("output", "verbs")
_UNSHOWN: tuple[Any, ...] = (inspect.Parameter.empty, None, False, ())
_ENTRY = re.compile(r"^    (\w+): (.+(?:\n        .+)*)", re.MULTILINE)


@dataclass(frozen=True)
class OptionField:
    """One option.

    Attributes:
        name: of the dataclass's field.
        key: in recipes: the long flag without its dashes, or the name of the argument.
        parameter: for typer.
        text: how the text that typer takes is read and written; None where it takes the value itself.
        hint: the type of the field.
        info: what typer knows of it.
    """

    name: str
    key: str
    parameter: inspect.Parameter
    text: Text | None
    hint: Any
    info: ParameterInfo

    @property
    def repeatable(self) -> bool:
        """Whether it may be given several times."""
        return self.text is None and get_origin(self.hint) is tuple

    @property
    def flag(self) -> bool:
        """Whether it is given without a value."""
        return self.hint is bool

    @property
    def choices(self) -> list[str]:
        """What it may be; empty where that is not a matter of choice."""
        return [one for kind in _allowed(self.hint) if get_origin(kind) is Literal for one in get_args(kind)]

    def checked(self, value: Any) -> Any:
        """A value that Python gave, which the command line would take as well; paths may be text.

        Raises:
            OptionError: out of range, or none of the choices.
        """
        if value is None:
            return None
        allowed, option = _allowed(self.hint), f"{self.key} {value!r}"
        for one in value if isinstance(value, tuple) else (value,):
            if self.choices and one not in self.choices:
                raise OptionError(f"{self.key} {one!r} is not one of {', '.join(self.choices)}; choose one of these")
        if self.info.min is not None and value < self.info.min:
            raise OptionError(f"{option} is below {self.info.min}; give at least that")
        if self.info.max is not None and value > self.info.max:
            raise OptionError(f"{option} is above {self.info.max}; give at most that")
        return Path(value) if Path in allowed and isinstance(value, str) else value

    def read(self, value: Any) -> Any:
        """The value of the field, from the one that typer gives."""
        if isinstance(value, str) and self.text is not None:
            return self.text.read(f"--{self.key}", value)
        if isinstance(value, Enum):
            return value.value
        if value is None and self.parameter.default == ():
            return ()
        return tuple(self.read(one) for one in value) if isinstance(value, (list, tuple)) else value

    def write(self, value: Any) -> Any:
        """The value as recipes have it."""
        return value if self.text is None or value is None else self.text.write(value)


def option_fields(options: type) -> Mapping[str, OptionField]:
    """The options of a verb, by name; a group's stand together."""
    hints = get_type_hints(options, include_extras=True)
    about = {name: text for owner in reversed(options.__mro__) for name, text in _described(owner)}
    found = {}
    for owner in (*options.__bases__, options):
        for field in fields(owner) if owner is not object else ():
            found[field.name] = _option(
                field, hints[field.name], about.get(field.name, ""), _panel(options, field.name)
            )
    return found


def _option(field: Field[Any], hint: Any, about: str, panel: str | None) -> OptionField:
    hint, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    text = next((extra for extra in extras if isinstance(extra, Text)), None)
    flag = "--" + field.name.replace("_", "-")
    info: ParameterInfo = copy(next((extra for extra in extras if isinstance(extra, ParameterInfo)), Option(flag)))
    if isinstance(info, OptionInfo):
        # Behind Annotated, typer takes the first flag for a default at first.
        flags = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)] or [flag]
        info.default, info.param_decls = flags[0], flags[1:]
        flag, info.rich_help_panel = flags[0], info.rich_help_panel or panel
    info.help = about
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    if isinstance(info.show_default, bool):
        info.show_default = info.show_default and not any(default is one for one in _UNSHOWN)
    taken = _typed(field.name, hint if text is None else str | None if default is None else str)
    annotation: Any = Annotated[taken, info]
    key = flag.removeprefix("--") if not isinstance(info, ArgumentInfo) else field.name
    parameter = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    return OptionField(field.name, key, parameter, text, hint, info)


def _typed(name: str, hint: Any) -> Any:
    """A type that every typer knows: enumerations for literals, lists for tuples."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return Enum(name, {value: value for value in inner}, type=str)
    if kind is tuple:
        return list[_typed(name, inner[0])]  # type: ignore[misc]
    if kind in (Union, types.UnionType):
        return Union[tuple(_typed(name, one) for one in inner)]  # noqa: UP007
    return hint


def _allowed(hint: Any) -> tuple[Any, ...]:
    """The types that a value may have, or the values of a tuple."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(one for part in get_args(hint) for one in _allowed(part))
    return _allowed(get_args(hint)[0]) if get_origin(hint) is tuple else (hint,)


def _described(owner: type) -> Iterator[tuple[str, str]]:
    _, _, entries = (inspect.cleandoc(owner.__doc__ or "")).partition("Attributes:\n")
    for name, text in _ENTRY.findall(entries):
        yield name, " ".join(text.split())


def _panel(options: type, name: str) -> str | None:
    """The file in which an option stands."""
    owner = next(owner for owner in options.__mro__ if name in inspect.get_annotations(owner))
    group = owner.__module__.rpartition(".")[2]
    return None if group in _NO_PANEL else group.title()
