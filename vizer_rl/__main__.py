"""`python -m vizer_rl` is `vizer-rl`."""

import sys

from .cli import main

sys.exit(main())
