"""A registry on this machine's loopback: Debian's docker-registry, unpacked into a folder of ours, never installed.

Unpacking changes nothing else on the machine: no user, no service, no file below /etc. It is for tests and for staging
without a network; whoever has a registry names that one.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # a field of a dataclass that is built from it
from typing import TYPE_CHECKING, Final

from buildkit.engine.processes import end, program_of
from buildkit.errors import CommandFailed, RegistryFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LocalRegistry", "Registry"]

_PACKAGE: Final = "docker-registry"
_PROGRAM: Final = "docker-registry"
_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 10.0
_MANIFESTS: Final = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in ("oci.image.manifest.v1", "oci.image.index.v1", "docker.distribution.manifest.v2")
)
_HTTP_NOT_FOUND: Final = 404
_HTTP_ACCEPTED: Final = 202


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry's HTTP API (OCI distribution-spec 1.1), as far as releases ask it anything, without credentials.

    Attributes:
        address: host:port.
    """

    address: str

    def answers(self) -> bool:
        """Whether it speaks the protocol."""
        try:
            return self._ask("GET", "/v2/")[0] in {200, 401}
        except (OSError, http.client.HTTPException):
            return False

    def digest(self, repository: str, reference: str) -> str | None:
        """The digest that *reference* (a tag or digest) stands for; None where there is none.

        Raises:
            RegistryFailed: it does not answer, or with something else.
        """
        status, headers, _ = self._must("HEAD", f"/v2/{repository}/manifests/{reference}")
        if status == _HTTP_NOT_FOUND:
            return None
        return headers.get("docker-content-digest")

    def delete(self, repository: str, digest: str) -> bool:
        """Forgets a manifest; its blobs go with the next `LocalRegistry.collect`. False where it was not there.

        Raises:
            RegistryFailed: it does not answer, or does not allow it.
        """
        status, _, _ = self._must("DELETE", f"/v2/{repository}/manifests/{digest}")
        if status not in {_HTTP_ACCEPTED, _HTTP_NOT_FOUND}:
            raise RegistryFailed(self.address, f"deleting {repository}@{digest} was answered {status}")
        return status == _HTTP_ACCEPTED

    def _must(self, method: str, path: str) -> tuple[int, Mapping[str, str], bytes]:
        try:
            return self._ask(method, path)
        except (OSError, http.client.HTTPException) as error:
            raise RegistryFailed(self.address, f"does not answer: {error}") from error

    def _ask(self, method: str, path: str) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=_ANSWER_SECONDS)
        try:
            connection.request(method, path, headers={"Accept": _MANIFESTS})
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class LocalRegistry:
    """The registry that we start ourselves.

    Attributes:
        folder: holds the unpacked package, the configuration, the images, the log and the process id.
        port: on 127.0.0.1; engines talk plain HTTP to it (their default for 127.0.0.0/8).
    """

    folder: Path
    port: int = 5055

    @property
    def address(self) -> str:
        """As images name it."""
        return f"127.0.0.1:{self.port}"

    @property
    def program(self) -> Path:
        """The executable."""
        return self.folder / "package" / "usr" / "bin" / _PROGRAM

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / "registry.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "registry.pid"

    @property
    def _configuration(self) -> Path:
        return self.folder / "config.yml"

    def ensure(self, log: Callable[[str], None]) -> Registry:
        """Unpacks and starts it unless it runs; says each change before it makes it.

        Raises:
            CommandFailed: the package cannot be had.
            RegistryFailed: it did not come up, or another program has the port.
        """
        registry = Registry(self.address)
        if self.pid() is not None and registry.answers():
            return registry
        if registry.answers():
            reason = "another registry, not started by this project, has the port"
            raise RegistryFailed(self.address, reason, "name it with --registry, or choose another --registry-port")
        if not self.program.exists():
            self._unpack(log)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._configuration.write_text(json.dumps(self.configuration(), indent=1))  # JSON is YAML
        log(f"starting the local registry at {self.address}, images in {self.folder / 'images'}")
        with self.log.open("ab") as log_file:
            process = subprocess.Popen(
                [self.program, "serve", self._configuration],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Every REGISTRY_ variable would be read as a setting (its own documentation, "Override options").
                env={name: value for name, value in os.environ.items() if not name.startswith(("REGISTRY_", "OTEL_"))},
            )
        self._pid_file.write_text(f"{process.pid}\n")
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if registry.answers():
                return registry
            time.sleep(0.05)
        end([process.pid], ask=signal.SIGTERM, patience_seconds=_STOP_SECONDS)
        self._pid_file.unlink(missing_ok=True)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
        raise RegistryFailed(self.address, f"did not start; the end of {self.log}:\n{tail}")

    def stop(self, log: Callable[[str], None], *, purge: bool = False) -> bool:
        """Ends it; False where it did not run. *purge* removes all of its folder."""
        pid = self.pid()
        if pid is not None:
            log(f"stopping the local registry {pid}")
            end([pid], ask=signal.SIGTERM, patience_seconds=_STOP_SECONDS)
        self._pid_file.unlink(missing_ok=True)
        if purge and self.folder.exists():
            log(f"removing {self.folder}")
            shutil.rmtree(self.folder)
        return pid is not None

    def pid(self) -> int | None:
        """The process that runs; a stale file, whose number may be another program's by now, counts as none."""
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if program_of(pid) == _PROGRAM[:15] else None  # the kernel keeps 15 characters (proc(5), comm)

    def collect(self, log: Callable[[str], None]) -> int:
        """Removes blobs that no manifest names; the bytes freed. The registry is stopped meanwhile: uploads would race.

        Raises:
            CommandFailed: its garbage collection failed.
        """
        before_bytes = _folder_bytes(self.folder / "images")
        was_running = self.stop(log)
        command = [str(self.program), "garbage-collect", "--delete-untagged=false", str(self._configuration)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if was_running:
            self.ensure(log)
        if done.returncode != 0:
            raise CommandFailed(command, done.returncode, done.stderr[-2000:])
        return before_bytes - _folder_bytes(self.folder / "images")

    def configuration(self) -> dict[str, object]:
        """Its config.yml."""
        return {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "images")},
                "delete": {"enabled": True},
            },
            "http": {"addr": self.address},
        }

    def _unpack(self, log: Callable[[str], None]) -> None:
        """Fetches Debian's package with apt and unpacks it; nothing is installed."""
        scratch = self.folder / "fetched"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        log(f"fetching Debian's {_PACKAGE} and unpacking it into {self.folder / 'package'}")
        try:
            try:
                _run(["apt-get", "download", _PACKAGE], scratch)
            except CommandFailed:
                log("running apt-get update: no list of packages knows it")
                _run(["apt-get", "--quiet", "update"], scratch)
                _run(["apt-get", "download", _PACKAGE], scratch)
            [package] = scratch.glob(f"{_PACKAGE}_*.deb")
            unpacked = scratch / "package"
            _run(["dpkg-deb", "--extract", str(package), str(unpacked)], scratch)
            shutil.rmtree(self.folder / "package", ignore_errors=True)
            unpacked.rename(self.folder / "package")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CommandFailed(command, 127, "the local registry is Debian's package and needs apt") from error
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, (done.stdout + done.stderr).strip()[-2000:])


def _folder_bytes(folder: Path) -> int:
    """Bytes of the regular files below *folder*."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
