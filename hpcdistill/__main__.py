"""`python -m hpcdistill`."""

import sys

from hpcdistill.cli import main

sys.exit(main())
