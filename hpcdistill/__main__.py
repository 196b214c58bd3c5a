"""`python -m hpcdistill`."""

import sys

from hpcdistill.cli.main import main

sys.exit(main())
