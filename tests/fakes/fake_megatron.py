#!/usr/bin/env python3
"""FakeMegatron: stands in for torchrun with pretrain_gpt.py, which needs GPUs.

Prints Megatron-LM's own log lines (megatron-core 0.19.2) and, like it, saves and returns 0 after
SIGTERM. Named by `launch.python`; with HANG in its environment it trains until it is stopped.
"""

import os
import signal
import sys
import time

LINE = (
    " [2026-11-22 07:16:32.123456] iteration {i:8d}/{n:8d} | consumed samples: {s:12d} | "
    "elapsed time per iteration (ms): 79.5 | learning rate: 3.000000E-04 | global batch size:     4 | "
    "lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: 1.955 | number of skipped iterations:   0 | "
    "number of nan iterations:   0 |"
)


def on_signal(number, frame):
    print("exiting program after receiving SIGTERM.", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, on_signal)
if "pretrain_gpt.py" not in sys.argv or not os.path.exists("pretrain_gpt.py"):
    sys.exit("FakeMegatron runs pretrain_gpt.py from its own directory only")
for i in range(1, 4):
    print(LINE.format(i=i, n=3, s=4 * i, loss=6.0 - i), flush=True)
while os.environ.get("HANG"):
    time.sleep(0.05)
