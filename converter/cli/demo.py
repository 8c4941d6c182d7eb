"""`dprp demo`: the whole chain on a network and images that ship with the packages."""

from __future__ import annotations

import torch

from ...models import DIGITS_WEIGHTS
from ..chain.folder import is_empty, made_by
from ..chain.summary import Summary
from ..errors import OptionError
from .compress import compress
from .recipes import written
from .verbs import CompressOptions, DemoOptions

MODEL = "digits_cnn"
EPOCHS = 5
VERB = "demo"


def demo(asked: DemoOptions) -> Summary:
    """Compresses a small CNN, pretrained on scikit-learn's 1,797 digits, to half its MACs.

    What an earlier demo left in the folder is replaced.

    Raises:
        OptionError: the folder holds other people's files.
        DataError: scikit-learn is not installed.
    """
    folder = asked.output
    if folder.exists() and not is_empty(folder) and made_by(folder) != VERB:
        raise OptionError(f"{folder}: holds something else than an earlier demo's files; pass -o with another folder")
    threads = torch.get_num_threads()
    # On maps of 8 x 8 a second thread gains a fifth, and on a busy machine makes it many times slower.
    torch.set_num_threads(1)
    try:
        whole = CompressOptions(
            model=MODEL,
            checkpoint=DIGITS_WEIGHTS,
            data="digits",
            budget="macs=0.5",
            epochs=EPOCHS,
            batch_size=64,
            output=folder,
            force=True,
            save_every=0,
            seed=asked.seed,
            device=asked.device,
            quiet=asked.quiet,
        )
        return compress(whole, made_by=VERB, recipe=written(VERB, asked))
    finally:
        torch.set_num_threads(threads)
