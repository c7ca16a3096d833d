"""`python -m learn2pd` is the console script."""

import sys

from learn2pd.cli.main import main

sys.exit(main())
