"""The command line as a module, for launchers: accelerate launch -m dprp.cli finetune ..."""

import sys

from .converter.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
