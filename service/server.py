"""Runs the HTTP server until a signal ends it: listen, keep listening for the shutdown delay, drain, exit."""

import logging
import signal
import threading
from types import FrameType

import uvicorn

from service.app import create_app
from service.health import Health
from service.settings import Settings
from service.telemetry import configure_logging

__all__ = ["run_server"]

_LOGGER = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """A server that reports not ready from the first signal on and stops listening after the shutdown delay."""

    def __init__(self, configuration: uvicorn.Config, health: Health, shutdown_delay_seconds: float) -> None:
        super().__init__(configuration)
        self._health = health
        self._shutdown_delay_seconds = shutdown_delay_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Starts the shutdown; a second signal skips what is left of the delay."""
        if self._shutdown_delay_seconds and not self._health.is_draining:
            timer = threading.Timer(self._shutdown_delay_seconds, super().handle_exit, (sig, None))
            timer.daemon = True
            timer.start()
        else:
            super().handle_exit(sig, frame)
        self._health.is_draining = True


def run_server(settings: Settings, *, host: str | None, port: int | None) -> tuple[int, bool]:
    """Serves until a signal; `host` and `port` override the settings.

    Returns:
        The exit code, and whether a thread is still computing: the interpreter must not be torn down around it.
    """
    configure_logging(settings.log_level)
    if settings.unknown:
        _LOGGER.warning("unknown settings ignored: %s", ", ".join(settings.unknown))
    application = create_app(settings)
    configuration = uvicorn.Config(
        application.asgi,
        host=host or settings.host,
        port=settings.port if port is None else port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
    )
    # uvicorn raises the signal again after draining. For us draining is a normal end, so the default action must not
    # kill the process.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    server = _Server(configuration, application.health, settings.shutdown_delay_seconds)
    server.run()
    return (0 if server.started else 1), application.engine.is_busy
