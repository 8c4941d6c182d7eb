import types

import dprp.models


def test_all_is_the_public_surface() -> None:
    public = {
        name
        for name, value in vars(dprp.models).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(dprp.models.__all__)
