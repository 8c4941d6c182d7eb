"""What all options have in common."""

from __future__ import annotations

from dataclasses import dataclass

from ..fields import option_fields


@dataclass(frozen=True)
class Options:
    """Options that are in range, wherever they come from.

    Raises:
        OptionError: one is not.
    """

    def __post_init__(self) -> None:
        for field in option_fields(type(self)).values():
            object.__setattr__(self, field.name, field.checked(getattr(self, field.name)))
