"""`python -m sd_ext.cli`, for when the script `sd-ext` is not on the path."""

import sys

from . import main

sys.exit(main())
