"""`python -m alignkit.checkup.isolation.worker FD NAME`: load a reward and answer on the pipe FD."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from alignkit.checkup.isolation.serving import serve
from alignkit.checkup.isolation.source import open_reward

if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), lambda: open_reward(sys.argv[2]))
