"""OtherClock: a machine whose clock somebody sets. $FAKE_CLOCK names a file with the seconds by which it is off."""

import os
import time
from pathlib import Path

_FILE, _real_time = Path(os.environ["FAKE_CLOCK"]), time.time


def _time() -> float:
    return _real_time() + float(_FILE.read_text())


time.time = _time
