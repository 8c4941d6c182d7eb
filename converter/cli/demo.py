"""`dprp demo`: the whole chain on a network and images that ship with the packages."""

from __future__ import annotations

from pathlib import Path

import torch

from ...models import DIGITS_WEIGHTS
from .compress import compress
from .errors import CliError
from .folder import is_empty, made_by
from .summary import Summary

MODEL = "digits_cnn"
EPOCHS = 5
VERB = "demo"


def demo(
    *,
    output: Path | str = "dprp-demo",
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
    recipe: str | None = None,
) -> Summary:
    """Compresses a small CNN, pretrained on scikit-learn's 1,797 digits, to half its MACs.

    Args:
        output: folder for the files; what an earlier demo left there is replaced.
        seed: of the run.
        device: auto, cpu or cuda.
        quiet: show neither notes nor a progress bar.
        recipe: as for `compress`.

    Returns:
        Dense against compressed.

    Raises:
        CliError: the folder holds other people's files.
        DataError: scikit-learn is not installed.
    """
    folder = Path(output)
    if folder.exists() and not is_empty(folder) and made_by(folder) != VERB:
        raise CliError(f"{folder}: holds something else than an earlier demo's files; pass -o with another folder")
    threads = torch.get_num_threads()
    # On maps of 8 x 8 a second thread gains a fifth, and on a busy machine makes it many times slower.
    torch.set_num_threads(1)
    try:
        return compress(
            MODEL,
            checkpoint=DIGITS_WEIGHTS,
            data="digits",
            budget="macs=0.5",
            epochs=EPOCHS,
            batch_size=64,
            output=folder,
            force=True,
            seed=seed,
            device=device,
            quiet=quiet,
            made_by=VERB,
            recipe=recipe,
        )
    finally:
        torch.set_num_threads(threads)
