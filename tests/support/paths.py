"""Where the checkout lies, and real speech beside it where there is any."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"
FSDD = SHARED / "fsdd"
LIBRISPEECH = SHARED / "librispeech_dev_clean_84"
