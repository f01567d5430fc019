"""Makes the service need migration 0002. `crash.py` says how it is installed."""

from __future__ import annotations

import sys

if "serve" in sys.orig_argv:
    from service import database

    assert database.SCHEMA_REVISION == "0001", "the variants' migration follows 0001"
    vars(database)["SCHEMA_REVISION"] = "0002"
