"""The signals with which a supervisor speaks to a worker, besides its messages."""

import signal
import sys

# "Read your socket now": the supervisor sends it after a Stop, because a running step reads nothing.
STOP_SIGNAL = int(signal.SIGUSR1)
# On this signal a worker writes the stacks of its threads, even if one of them is in a call that never returns.
# It is one of the last real-time signals, which are rarely used; 0 on systems that have none.
STACK_SIGNAL = int(signal.SIGRTMAX) - 3 if sys.platform == "linux" else 0
