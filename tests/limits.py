"""How long the tests wait for what must come. Generous: it is only spent when something is broken.

`GPTOSS_TEST_PATIENCE=3` makes every limit three times as long, for a machine that does much else.
"""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("GPTOSS_TEST_PATIENCE", "1"))
LIMIT_S = 120.0 * PATIENCE
"""For a process to start, to answer, to end."""
LONG_LIMIT_S = 600.0 * PATIENCE
"""For what imports torch or trains."""
