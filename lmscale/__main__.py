"""``python -m lmscale`` is the ``lmscale`` command."""

import sys

from lmscale.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
