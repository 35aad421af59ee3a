"""``python -m index``: the same as the command ``towerline``."""

import sys

from index.cli import main

sys.exit(main())
