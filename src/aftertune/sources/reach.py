"""Is the Hub there? One short probe a process, so that offline machines go on at once."""

from __future__ import annotations

import socket
from functools import cache
from urllib.parse import urlsplit

from aftertune.sources.hub import offline

#: Seconds after which the Hub counts as not reached.
PATIENCE = 3.0


@cache
def reachable() -> bool:
    """True where the Hub's host takes a connection; never asked in offline mode or behind a proxy."""
    if offline():
        return False
    from urllib.request import getproxies

    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    if getproxies().get(parts.scheme):
        return True
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=PATIENCE):
            return True
    except OSError:
        return False
