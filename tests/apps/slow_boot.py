"""An app that takes long to import."""

import time

from underway import Underway

app = Underway()
time.sleep(30)
