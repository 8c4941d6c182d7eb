"""Recipes: the options of a verb in a file, which the command line overrides.

A recipe is YAML or TOML: one key an option, named as on the command line without its dashes, and the positional ones
by their name in the usage line, in small letters:

    model: cifar_resnet20
    checkpoint: resnet20.th
    budget: macs=0.5
    keep: [conv1, linear]

Paths are those of the command line: relative to where it runs.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...files import check_input, quoted, reading
from ..errors import OptionError
from .fields import OptionField, option_fields

_LARGEST = 2**16
_KINDS = (str, int, float, bool)


def read_recipe(path: Path, options: type) -> dict[str, Any]:
    """Options by their names in Python, as the command line takes them.

    Args:
        path: .yaml, .yml or .toml.
        options: the verb's.

    Raises:
        OptionError: no such file, not a recipe, an option that the verb does not have, or a value that is none; names
            the file and the key.
    """
    check_input(path, error=OptionError, largest=_LARGEST, what="a recipe (.yaml or .toml)")
    with reading(path, error=OptionError):
        text = path.read_text(encoding="utf-8")
    found = _parsed(path, text)
    if not isinstance(found, dict):
        raise OptionError(f"{quoted(path)}: is no table of options; write one a line, such as budget: macs=0.5")
    known = {field.key: field for field in option_fields(options).values()}
    given = {}
    for key, value in found.items():
        if str(key) not in known:
            raise OptionError(f"{quoted(path)}: {_unknown(str(key), known)}")
        field = known[str(key)]
        if value is False and "no" in field.choices:
            value = "no"  # which YAML takes for false
        if value is not None:
            wrong = _wrong(field, value)
            if wrong:
                raise OptionError(f"{quoted(path)}: {key} {wrong}")
            given[field.name] = [value] if field.repeatable and not isinstance(value, list) else value
    return given


def _wrong(field: OptionField, value: Any) -> str:
    """What is wrong with the kind of a value; empty where nothing is."""
    several = isinstance(value, list)
    if not all(isinstance(one, _KINDS) for one in (value if several else [value])):
        return "is no plain value; give text, a number, true or false, or a list"
    if several and not field.repeatable:
        return "takes one value, not a list; give one"
    if isinstance(value, bool) is not field.flag:
        return "is true or false; give one of them" if field.flag else "takes a value, not true or false; give one"
    return ""


def written(verb: str, options: Any) -> str:
    """A recipe with a verb's options as they are, those without a value left out."""
    import yaml

    values = {one.key: one.write(getattr(options, one.name)) for one in option_fields(type(options)).values()}
    plain = {key: _writable(value) for key, value in values.items() if value not in (None, ())}
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return f"# dprp {verb} --recipe THIS_FILE\n{text}"


def _parsed(path: Path, text: str) -> Any:
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise OptionError(f"{quoted(path)}: is not YAML ({_line(error)}); check it") from error
    if path.suffix == ".toml":
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

        try:
            return tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise OptionError(f"{quoted(path)}: is not TOML ({_line(error)}); check it") from error
    raise OptionError(f"{quoted(path)}: a recipe is a .yaml or .toml file; name it so")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _unknown(key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(key, names, 1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return f"{key[:100]!r} is no option of this verb; {meant}"


def _writable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_writable(one) for one in value]
    return value if isinstance(value, _KINDS) else str(value)
