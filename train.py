"""Run the stages of a configuration: python train.py config=tiny_filter [key=value ...]."""

import os
import sys

# The variable is read when torch is loaded. Threads that wait by spinning slow a run several times over as soon as
# anything else uses a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from learn2pd.cli.main import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
