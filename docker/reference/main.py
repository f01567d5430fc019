"""Provides the ASGI application as a module attribute for `uvicorn --reload`, in phase1 and phase2 only."""

import os

from service.app import create_app
from service.settings import Settings

app = create_app(Settings.from_environment(os.environ)).litestar
