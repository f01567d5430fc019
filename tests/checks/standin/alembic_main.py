"""Stands in for `python -m alembic upgrade head --sql`."""

import os
import sys

if "migration" in os.environ.get("STANDIN_FAULTS", "").split(","):
    sys.exit("No 'script_location' key found in configuration")
sys.stdout.write("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);\n")
