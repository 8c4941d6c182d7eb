"""What can go wrong with models, checkpoints and data, as one tree.

    ModelsError
    ├── ArchitectureError  no such architecture, or a user's own function does not give one
    ├── WeightsError       a checkpoint file cannot be read, or does not fit the model
    └── DataError          a data set cannot be read, or does not fit the model

Every message is one sentence that names the file or layer, what came, what is allowed and what to do.
"""


class ModelsError(ValueError):
    """Root of all errors that `dprp.models` raises on purpose."""


class ArchitectureError(ModelsError):
    """No such architecture, or a user's own function does not give one."""


class WeightsError(ModelsError):
    """A checkpoint file cannot be read, or does not fit the model."""


class DataError(ModelsError):
    """A data set cannot be read, or does not fit the model."""
