"""`python -m launch`: the command `melllm`, where its script is not on the path."""

import sys

from launch.cli import main

sys.exit(main())
