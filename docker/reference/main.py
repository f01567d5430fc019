"""The ASGI application as a module attribute, which `uvicorn --reload` wants; for the two baselines only."""

import os

from service.app import create_app
from service.settings import Settings

app = create_app(Settings.from_environment(os.environ)).litestar
