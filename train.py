"""Run the stages of a configuration: python train.py config=tiny_filter [key=value ...]"""

import sys

from learn2pd.cli import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
