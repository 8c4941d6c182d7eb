"""What can go wrong in the converter, as one tree.

    ConverterError
    ├── LayerError       a layer cannot take this form, rank or shape
    ├── ModelError       the model as a whole cannot be worked on as it is
    ├── PlanError        a plan does not read, or does not fit the model
    ├── BudgetError      a budget makes no sense, or cannot be reached
    ├── CheckpointError  a compressed checkpoint cannot be read or written
    ├── TrainingError    fine-tuning cannot start or cannot go on
    └── OptionError      options make no sense together, or an output may not be written

A ConverterWarning says that less was done than asked, and that the result is right all the same.

Every message is one sentence that names the layer or file, what came, what is allowed and what to do.
"""


class ConverterError(ValueError):
    """Root of all errors that the converter raises on purpose."""


class LayerError(ConverterError):
    """A layer cannot take this form, rank or shape."""


class ModelError(ConverterError):
    """The model as a whole cannot be worked on as it is."""


class PlanError(ConverterError):
    """A plan does not read, or does not fit the model."""


class BudgetError(ConverterError):
    """A budget makes no sense, or cannot be reached."""


class CheckpointError(ConverterError):
    """A compressed checkpoint cannot be read or written."""


class TrainingError(ConverterError):
    """Fine-tuning cannot start or cannot go on."""


class OptionError(ConverterError):
    """Options make no sense together, or an output may not be written."""


class ConverterWarning(UserWarning):
    """Less was done than asked: a layer was left as it was, or fitted without data."""
