"""python main.py [COMMAND] --config=configs/NAME.py [--workdir=DIR] [--config.key=value ...]

This file is short so that the library can be used without it; `--help` explains the commands.
"""

import sys

from densenet_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
