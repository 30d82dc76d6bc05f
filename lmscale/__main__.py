"""``python -m lmscale``."""

import sys

from lmscale.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
