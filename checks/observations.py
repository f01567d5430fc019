"""Observes an image: reads its layers and its file system, runs its service and its models, all in parallel.

Each observation is a future; the checks wait for its result. Observations start in the order in which the checks
need them, four at a time: two cores can read layers while programs run in containers.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from checks.engine import EngineFailed, Process
from checks.facts import FileSystem
from checks.golden import TEXTS
from checks.layers import ImageLayers, read_store, read_stream
from checks.secrets import SecretScanner

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from checks.engine import DockerClient
    from checks.expectations import Expectations

__all__ = ["DeviceRun", "Import", "ModelRun", "Observations", "ProgramFailed", "Response", "ServiceRun"]

WORKERS = 4
SETTLE_SECONDS = 3.0  # a service that cannot run has ended by then; a guess
PATHS = ("/livez", "/readyz", "/metrics", "/openapi.json")
SLOW_ROUTE = "/api/v1/embed"
T = TypeVar("T")


class ProgramFailed(Exception):
    """A program of `programs/` failed inside the image."""

    def __init__(self, program: str, process: Process) -> None:
        super().__init__(
            f"{program} failed inside the image, exit code {process.exit_code}: {process.errors.strip()[-2000:]}"
        )
        self.program = program
        self.process = process


@dataclass(frozen=True, slots=True)
class Import:
    """The import of one module; `error` is its traceback, or empty."""

    version: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """The CUDA version and GPUs that torch was compiled for."""

    cuda: str | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRun:
    """Imports and embeddings, as programs/embedding.py prints them.

    `uncompiled` are the imported sources without bytecode.
    """

    imports: dict[str, Import]
    torch: TorchBuild = TorchBuild()
    vectors: list[list[float]] = field(default_factory=list)
    error: str = ""
    uncompiled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceRun:
    """Results of the GPU, as programs/device.py prints them; `unavailable` says why there are none."""

    is_available: bool = False
    count: int = 0
    name: str = ""
    capability: str = ""
    is_product_equal: bool = False
    vectors: list[list[float]] = field(default_factory=list)
    unavailable: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """A response of the service.

    Attributes:
        status: the HTTP status, 0 if there was no response.
        body: the body, or why there was no response.
    """

    status: int
    body: str


@dataclass(frozen=True, slots=True)
class ServiceRun:
    """One run of the service, from start to stop, with the image's own command and without database and network.

    `status` describes its first process (proc_pid_status(5)). `drained_status` is the HTTP status of the response to a
    request that was in flight when the service was stopped; 0 if there was none.
    """

    responses: dict[str, Response]
    start_seconds: float
    healthcheck: Process
    status: str
    is_running: bool
    drained_status: int
    drained_error: str
    stop_seconds: float
    exit_code: int
    log: str


class Observations:
    """The observations of *image*, which start at once; `seconds` has the duration of each that has ended.

    The folder *cache*, if given, caches the contents of layers.
    """

    def __init__(
        self,
        engine: DockerClient,
        image: str,
        expectations: Expectations,
        *,
        build_secrets: Mapping[str, str],
        cache: Path | None,
    ) -> None:
        self.cache = cache
        self.engine = engine
        self.image, self.configuration = engine.inspect(image)
        self.expectations = expectations
        self.scanner = SecretScanner(build_secrets)
        self.seconds: dict[str, float] = {}
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="observe")
        has_service, has_models = expectations.has_application, expectations.has_models
        self.file_system = self._start("file system", self.walk_file_system)
        self.container = self._start("container", self.start_container)
        self.layers = self._start("layers", self.read_layers)
        self.service = self._start("service", self.run_service, needed=has_service)
        self.models = self._start("models", self.run_models, needed=has_models)
        self.libraries = self._start("libraries", self.load_libraries)
        self.command = self._start("embed command", self.run_embed_command, needed=has_service and has_models)
        self.routes = self._start("routes", self.list_routes, needed=has_service)
        self.migration = self._start("migration", self.render_migrations, needed=has_service)
        self.device = self._start("device", self.use_device, needed=has_models)

    def _start(self, name: str, work: Callable[[], T], *, needed: bool = True) -> Future[T]:
        """Starts *work* and measures its seconds; the result of an observation that is not needed is an error."""
        if not needed:
            missing: Future[T] = Future()
            missing.set_exception(LookupError(f"{name} is not observed for the target {self.expectations.target}"))
            return missing

        def timed() -> T:
            started = time.monotonic()
            try:
                return work()
            finally:
                self.seconds[name] = time.monotonic() - started

        return self.pool.submit(timed)

    def record(self) -> dict[str, object]:
        """Returns the results of all observations that ran the image, by name; None for those that failed."""
        names = ("service", "models", "command", "routes", "migration", "device")
        return {name: result_of(getattr(self, name)) for name in names}

    def close(self) -> None:
        """Stops the observations that still run, and removes all containers."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.engine.close()
        self.pool.shutdown(wait=True)
        self.engine.close()

    def walk_file_system(self) -> FileSystem:
        """Runs programs/filesystem.py as root, with the right to read every file and no other."""
        expected = self.expectations
        folders = {
            "virtual_environment": expected.virtual_environment,
            "application": expected.application,
            "uncompiled": expected.uncompiled,
        }
        options = ("--cap-add", "DAC_READ_SEARCH", "--user", "0")
        process = self.engine.run_program(self.image, "filesystem.py", folders, *options)
        return self.decode("filesystem.py", process, FileSystem)

    def start_container(self) -> str:
        """Starts the container in which the checks run commands, as the expected user."""
        options = ("--tmpfs", "/tmp", "--user", self.expectations.user, "--entrypoint", "sleep")  # noqa: S108
        return self.engine.start(self.image, *options, command=("86400",))

    def read_layers(self) -> ImageLayers:
        """Reads every layer, from the engine's own folder if this process may, else from `docker save`."""
        folder = self.engine.blob_folder(self.image)
        if folder:
            return read_store(folder, self.image, self.configuration.architecture, self.scanner, self.cache)
        with self.engine.save(self.image) as saving:
            if saving.stdout is None:
                raise LookupError("docker save has no output")
            return read_stream(saving.stdout, self.scanner)

    def run_models(self) -> ModelRun:
        """Imports the model libraries and embeds the golden sentences."""
        request = {"model": self.expectations.model, "texts": TEXTS}
        process = self.engine.exec_program(self.container.result(), "embedding.py", request)
        return self.decode("embedding.py", process, ModelRun)

    def run_embed_command(self) -> Process:
        """Embeds the golden sentences with the service's command `embed`."""
        return self.engine.exec(self.container.result(), "python3", "-m", "service", "embed", *TEXTS)

    def list_routes(self) -> Process:
        """Lists the declared and the registered routes with the service's command `routes`."""
        return self.engine.exec(self.container.result(), "python3", "-m", "service", "routes")

    def render_migrations(self) -> Process:
        """Renders all migrations as SQL with Alembic, which needs no database."""
        command = ("python3", "-m", "alembic", "upgrade", "head", "--sql")
        return self.engine.exec(self.container.result(), *command)

    def load_libraries(self) -> dict[str, str]:
        """Loads each intact shared object of the Python environments in a separate process."""
        system = self.file_system.result()
        folders = [self.expectations.virtual_environment, *system.site_packages]
        prefixes = tuple(f"{folder}/" for folder in folders if folder)
        provided = set(self.expectations.provided_libraries)
        libraries = [item for item in system.objects if item.is_library and item.path.startswith(prefixes)]
        dependents: dict[str, list[str]] = {}
        for item in libraries:
            for name in item.needed:
                dependents.setdefault(name, []).append(item.path)
        intact = [item for item in libraries if not item.is_corrupt and not set(item.unresolved) - provided]
        request = {item.path: dependents.get(item.soname or item.path.rpartition("/")[2], []) for item in intact}
        process = self.engine.exec_program(self.container.result(), "libraries.py", request)
        return self.decode("libraries.py", process, dict[str, str])

    def use_device(self) -> DeviceRun:
        """Runs programs/device.py in a container with all GPUs."""
        request = {"model": self.expectations.model, "texts": TEXTS}
        options = ("--gpus", "all", "--tmpfs", "/tmp")  # noqa: S108 - in the container
        process = self.engine.run_program(self.image, "device.py", request, *options)
        if process.exit_code == 125:  # docker's own failure, not the program's (docker-run(1), "Exit Status")
            lines = process.errors.strip().splitlines()
            return DeviceRun(
                unavailable=f"the engine cannot provide a GPU: {lines[0] if lines else 'it gave no reason'}"
            )
        if process.exit_code:
            return DeviceRun(error=process.errors.strip()[-2000:])
        return self.decode("device.py", process, DeviceRun)

    def run_service(self) -> ServiceRun:
        """Starts the image with its own command, sends requests, stops it, and records each outcome."""
        expectations = self.expectations
        started = time.monotonic()
        container = self.engine.start(self.image, "--tmpfs", "/tmp")  # noqa: S108 - in the container
        request = {
            "port": expectations.port,
            "start_seconds": expectations.start_seconds,
            "stop_seconds": expectations.stop_seconds,
            "paths": PATHS,
            "post": SLOW_ROUTE,
        }
        with self.engine.open_session(container, self.image, request) as client:
            answered = threading.Event()
            threading.Thread(target=self.kill_when_stopped, args=(client, container, answered), daemon=True).start()
            message = next_message(client)
            answered.set()
            healthcheck = self.engine.exec(container, *self.healthcheck_command())
            status = self.engine.exec(container, "cat", "/proc/1/status").output
            time.sleep(max(0.0, started + SETTLE_SECONDS - time.monotonic()))
            is_running = bool(self.engine.state(container)["Running"])
            if message:
                next_message(client)
            stopping = time.monotonic()
            self.engine.run("stop", "--time", str(int(expectations.stop_seconds)), container)
            stop_seconds = time.monotonic() - stopping
            drained = next_message(client).get("drained", {})
            if client.poll() is None and not drained:
                client.kill()
        none = (0, "the container ended before it answered")
        return ServiceRun(
            responses={path: Response(*message.get("responses", {}).get(path, none)) for path in ("/health", *PATHS)},
            start_seconds=message.get("seconds", 0.0),
            healthcheck=healthcheck,
            status=status,
            is_running=is_running,
            drained_status=drained.get("status", 0),
            drained_error=drained.get("error", "the connection was never made"),
            stop_seconds=stop_seconds,
            exit_code=int(self.engine.state(container)["ExitCode"]),
            log=self.engine.logs(container),
        )

    def healthcheck_command(self) -> tuple[str, ...]:
        """Returns the command of the image's health check; one that fails if there is none."""
        test = self.configuration.healthcheck
        if test[:1] == ("CMD-SHELL",):
            return ("/bin/sh", "-c", *test[1:])
        return test[1:] or ("false",)

    def kill_when_stopped(self, client: subprocess.Popen[str], container: str, answered: threading.Event) -> None:
        """Kills *client* if *container* ends before it has answered: no message would come."""
        with contextlib.suppress(EngineFailed):
            self.engine.run("wait", container)
        if not answered.is_set():
            client.kill()

    @staticmethod
    def decode(program: str, process: Process, form: type[T]) -> T:
        """Returns the output of *program*, decoded as *form*; raises ProgramFailed if it failed."""
        if process.exit_code:
            raise ProgramFailed(program, process)
        return msgspec.json.decode(process.output, type=form)


def result_of(observation: Future[T]) -> T | None:
    """Returns the result of *observation*; None if it has none."""
    has_result = observation.done() and not observation.cancelled() and observation.exception() is None
    return observation.result() if has_result else None


def next_message(client: subprocess.Popen[str]) -> dict[str, Any]:
    """Returns the next line of *client*, decoded from JSON; an empty dictionary after its end."""
    line = client.stdout.readline() if client.stdout else ""
    message: dict[str, Any] = json.loads(line) if line else {}
    return message
