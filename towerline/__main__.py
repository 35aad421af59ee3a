"""``python -m towerline``: the same as the command ``towerline``."""

import sys

from towerline.commands.cli import main

sys.exit(main())
