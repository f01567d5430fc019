"""All that has to be run or read to know an image, done side by side; the checks ask for results.

Each piece of evidence is a future. They start in the order in which they are wanted, a few at a time: on two cores the
walk through the layers goes along with what runs inside containers.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
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

__all__ = ["Answer", "DeviceRun", "Import", "ModelRun", "Observations", "ProgramFailed", "Recorded", "ServiceRun"]

WORKERS = 4
SETTLED_SECONDS = 3.0  # a service that is about to give up has done so by then; a guess
PATHS = ("/livez", "/readyz", "/metrics", "/openapi.json")
DRAINED_ROUTE = "/api/v1/embed"
T = TypeVar("T")


class ProgramFailed(Exception):
    """A program of `programs/` did not run to its end inside the image."""

    def __init__(self, program: str, process: Process) -> None:
        super().__init__(f"{program} ended with {process.exit_code} inside the image: {process.errors.strip()[-2000:]}")
        self.program = program
        self.process = process


@dataclass(frozen=True, slots=True)
class Import:
    """How importing one module went."""

    version: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What torch was compiled for."""

    cuda: str | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRun:
    """What programs/embedding.py prints."""

    imports: dict[str, Import]
    torch: TorchBuild = TorchBuild()
    vectors: list[list[float]] = field(default_factory=list)
    error: str = ""
    uncompiled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceRun:
    """What programs/device.py prints, or why it could not run: `unavailable`."""

    is_available: bool = False
    count: int = 0
    name: str = ""
    capability: str = ""
    is_product_equal: bool = False
    vectors: list[list[float]] = field(default_factory=list)
    unavailable: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, 0 where there was none, and the body or why there was none."""

    status: int
    body: str


@dataclass(frozen=True, slots=True)
class ServiceRun:
    """One life of the service, started as the image says, without database and network.

    `status` is the kernel's word on its first process (proc_pid_status(5)).
    """

    answers: dict[str, Answer]
    start_seconds: float
    healthcheck: Process
    status: str
    is_running: bool
    drained_status: int
    drained_why: str
    stop_seconds: float
    exit_code: int
    log: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What running the image showed, to be looked at later or to be taken instead of running another."""

    service: ServiceRun | None = None
    models: ModelRun | None = None
    command: Process | None = None
    routes: Process | None = None
    migration: Process | None = None
    device: DeviceRun | None = None


class Observations:
    """The evidence on *image*; `seconds` says how long each piece took, once it is there.

    Pieces that are *recorded* are taken as they are; what was read of a layer is kept in the folder *cache*.
    """

    def __init__(
        self,
        engine: DockerClient,
        image: str,
        expectations: Expectations,
        *,
        handed_in: Mapping[str, str],
        recorded: Recorded,
        cache: Path | None,
    ) -> None:
        self.cache = cache
        self.engine = engine
        self.image, self.configuration = engine.inspect(image)
        self.expectations = expectations
        self.traces = SecretScanner(handed_in, frozenset(expectations.certificates_sha256))
        self.seconds: dict[str, float] = {}
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="evidence")
        runs, embeds = expectations.has_application, expectations.has_models
        self.file_system: Future[FileSystem] = self.begin("file system", self.walk)
        self.container: Future[str] = self.begin("container", self.hold)
        self.layers: Future[ImageLayers] = self.begin("layers", self.read_layers)
        self.service = self.begin("service", self.live, recorded.service, needed=runs)
        self.models = self.begin("models", self.embed, recorded.models, needed=embeds)
        self.libraries: Future[dict[str, str]] = self.begin("libraries", self.load_libraries)
        self.command = self.begin("embed command", self.embed_command, recorded.command, needed=runs and embeds)
        self.routes = self.begin("routes", self.list_routes, recorded.routes, needed=runs)
        self.migration = self.begin("migration", self.migrate, recorded.migration, needed=runs)
        self.device = self.begin("device", self.use_device, recorded.device, needed=embeds)

    def begin(self, name: str, work: Callable[[], T], recorded: T | None = None, *, needed: bool = True) -> Future[T]:
        """Starts *work*, noting its seconds; what is recorded is there at once, what is not needed fails when asked."""
        if recorded is not None or not needed:
            settled: Future[T] = Future()
            if recorded is not None:
                settled.set_result(recorded)
            else:
                settled.set_exception(LookupError(f"{name} is no evidence for this target"))
            return settled

        def timed() -> T:
            began = time.monotonic()
            try:
                return work()
            finally:
                self.seconds[name] = time.monotonic() - began

        return self.pool.submit(timed)

    def record(self) -> Recorded:
        """The pieces that came from running the image, as far as they are there."""
        return Recorded(**{item.name: result_of(getattr(self, item.name)) for item in fields(Recorded)})

    def close(self) -> None:
        """Stops what still runs and removes every container."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.engine.close()
        self.pool.shutdown(wait=True)
        self.engine.close()

    def walk(self) -> FileSystem:
        """Runs programs/filesystem.py as a root that may read everything and do nothing else."""
        expected = self.expectations
        places = {
            "virtual_environment": expected.virtual_environment,
            "application": expected.application,
            "uncompiled": expected.uncompiled,
        }
        options = ("--cap-add", "DAC_READ_SEARCH", "--user", "0")
        process = self.engine.run_program(self.image, "filesystem.py", places, *options)
        return self.decode("filesystem.py", process, FileSystem)

    def hold(self) -> str:
        """Starts the container in which the checks run commands, as the user of the image's contract."""
        options = ("--tmpfs", "/tmp", "--user", self.expectations.user, "--entrypoint", "sleep")  # noqa: S108
        return self.engine.start(self.image, *options, command=("86400",))

    def read_layers(self) -> ImageLayers:
        """Reads every layer, from the engine's own store where that can be read."""
        store = self.engine.store(self.image)
        if store:
            return read_store(store, self.image, self.configuration.architecture, self.traces, self.cache)
        with self.engine.save(self.image) as saving:
            if saving.stdout is None:
                raise LookupError("docker save has no output")
            return read_stream(saving.stdout, self.traces)

    def embed(self) -> ModelRun:
        """Imports the model libraries and embeds the golden sentences."""
        request = {"model": self.expectations.model, "texts": TEXTS}
        process = self.engine.exec_program(self.container.result(), "embedding.py", request)
        return self.decode("embedding.py", process, ModelRun)

    def embed_command(self) -> Process:
        """Embeds the golden sentences with the service's own command."""
        return self.engine.exec(self.container.result(), "python3", "-m", "service", "embed", *TEXTS)

    def list_routes(self) -> Process:
        """Asks the application for its route table."""
        return self.engine.exec(self.container.result(), "python3", "-m", "service", "routes")

    def migrate(self) -> Process:
        """Has Alembic write all migrations as SQL, which needs no database."""
        command = ("python3", "-m", "alembic", "upgrade", "head", "--sql")
        return self.engine.exec(self.container.result(), *command)

    def load_libraries(self) -> dict[str, str]:
        """Loads each whole shared object below the Python environments in a process of its own."""
        system = self.file_system.result()
        folders = [self.expectations.virtual_environment, *system.site_packages]
        prefixes = tuple(f"{folder}/" for folder in folders if folder)
        provided = set(self.expectations.provided_libraries)
        libraries = [item for item in system.objects if item.is_library and item.path.startswith(prefixes)]
        wholes: dict[str, list[str]] = {}
        for item in libraries:
            for name in item.needed:
                wholes.setdefault(name, []).append(item.path)
        intact = [item for item in libraries if not item.is_corrupt and not set(item.unresolved) - provided]
        request = {item.path: wholes.get(item.soname or item.path.rpartition("/")[2], []) for item in intact}
        process = self.engine.exec_program(self.container.result(), "libraries.py", request)
        return self.decode("libraries.py", process, dict[str, str])

    def use_device(self) -> DeviceRun:
        """Runs programs/device.py in a container with the GPUs, where the engine has any to give."""
        request = {"model": self.expectations.model, "texts": TEXTS}
        options = ("--gpus", "all", "--tmpfs", "/tmp")  # noqa: S108 - in the container
        process = self.engine.run_program(self.image, "device.py", request, *options)
        if process.exit_code == 125:  # docker's own failure, not the program's (docker-run(1), "Exit Status")
            lines = process.errors.strip().splitlines()
            return DeviceRun(unavailable=f"the engine gives no GPU: {lines[0] if lines else 'no reason told'}")
        if process.exit_code:
            return DeviceRun(error=process.errors.strip()[-2000:])
        return self.decode("device.py", process, DeviceRun)

    def live(self) -> ServiceRun:
        """Starts the image as it is, talks to it, stops it, and notes how it took each."""
        expectations = self.expectations
        began = time.monotonic()
        container = self.engine.start(self.image, "--tmpfs", "/tmp")  # noqa: S108 - in the container
        request = {
            "port": expectations.port,
            "start_seconds": expectations.start_seconds,
            "stop_seconds": expectations.stop_seconds,
            "paths": PATHS,
            "post": DRAINED_ROUTE,
        }
        silent = (0, "the container ended before it could be asked")
        with self.engine.converse(container, self.image, request) as client:
            answered = threading.Event()
            threading.Thread(target=self.give_up, args=(container, client, answered), daemon=True).start()
            said = heard(client)
            answered.set()
            test = self.configuration.healthcheck
            command = ("/bin/sh", "-c", *test[1:]) if test[:1] == ("CMD-SHELL",) else test[1:]
            healthcheck = self.engine.exec(container, *(command or ("false",)))
            status = self.engine.exec(container, "cat", "/proc/1/status").output
            while time.monotonic() < began + SETTLED_SECONDS:
                time.sleep(0.1)
            is_running = bool(self.engine.state(container)["Running"])
            if said:
                heard(client)
            stopping = time.monotonic()
            self.engine.ask("stop", "--time", str(int(expectations.stop_seconds)), container)
            stop_seconds = time.monotonic() - stopping
            drained = heard(client).get("drained", {})
            client.kill() if client.poll() is None and not drained else None
        return ServiceRun(
            answers={path: Answer(*said.get("answers", {}).get(path, silent)) for path in ("/health", *PATHS)},
            start_seconds=said.get("seconds", 0.0),
            healthcheck=healthcheck,
            status=status,
            is_running=is_running,
            drained_status=drained.get("status", 0),
            drained_why=drained.get("why", "the connection was never made"),
            stop_seconds=stop_seconds,
            exit_code=int(self.engine.state(container)["ExitCode"]),
            log=self.engine.logs(container),
        )

    def give_up(self, container: str, client: subprocess.Popen[str], answered: threading.Event) -> None:
        """Ends *client* when *container* ends before it has answered: nothing will come any more."""
        with contextlib.suppress(EngineFailed):
            self.engine.ask("wait", container)
        if not answered.is_set():
            client.kill()

    @staticmethod
    def decode(program: str, process: Process, form: type[T]) -> T:
        """What *program* printed, as a value."""
        if process.exit_code:
            raise ProgramFailed(program, process)
        return msgspec.json.decode(process.output, type=form)


def result_of(piece: Future[T]) -> T | None:
    """What came of *piece*, None where nothing did."""
    is_there = piece.done() and not piece.cancelled() and piece.exception() is None
    return piece.result() if is_there else None


def heard(client: subprocess.Popen[str]) -> dict[str, Any]:
    """The client's next line; empty once it has ended."""
    line = client.stdout.readline() if client.stdout else ""
    said: dict[str, Any] = json.loads(line) if line else {}
    return said
