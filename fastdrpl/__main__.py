"""`python -m fastdrpl`."""

import sys

from fastdrpl.cli import main

sys.exit(main())
