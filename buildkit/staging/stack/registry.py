"""Runs a registry on this machine's loopback address, and deletes images from it.

The registry is Debian's docker-registry, unpacked into the state folder and not installed: no user, no service and no
file below /etc is added. It serves tests and staging on one machine; otherwise name a registry with `--registry`.
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
from typing import TYPE_CHECKING, Final

from buildkit.engine.processes import end, program_of
from buildkit.errors import CommandFailed, RegistryFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    """The part of a registry's HTTP API that releases need (OCI distribution-spec 1.1), without credentials.

    Attributes:
        address: host:port.
    """

    address: str

    def answers(self) -> bool:
        """Returns whether a registry listens there."""
        try:
            return self._request("GET", "/v2/") in {200, 401}
        except RegistryFailed:
            return False

    def delete(self, repository: str, digest: str) -> bool:
        """Deletes a manifest and returns whether it existed. `LocalRegistry.collect_garbage` deletes its blobs.

        Raises:
            RegistryFailed: it does not answer, or does not allow it.
        """
        status = self._request("DELETE", f"/v2/{repository}/manifests/{digest}")
        if status not in {_HTTP_ACCEPTED, _HTTP_NOT_FOUND}:
            raise RegistryFailed(self.address, f"answered {status} to the deletion of {repository}@{digest}")
        return status == _HTTP_ACCEPTED

    def _request(self, method: str, path: str) -> int:
        """Returns the status of the answer."""
        connection = http.client.HTTPConnection(self.address, timeout=_ANSWER_SECONDS)
        try:
            connection.request(method, path, headers={"Accept": _MANIFESTS})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise RegistryFailed(self.address, f"does not answer: {error}") from error
        finally:
            connection.close()
        return answer.status


@dataclass(frozen=True, slots=True)
class LocalRegistry:
    """The registry that staging starts on this machine.

    Attributes:
        folder: of the unpacked package, the configuration, the images, the log and the process id.
        port: on 127.0.0.1; engines use plain HTTP there (their default for 127.0.0.0/8).
    """

    folder: Path
    port: int = 5055

    @property
    def address(self) -> str:
        """host:port, as in image names."""
        return f"127.0.0.1:{self.port}"

    @property
    def program(self) -> Path:
        """The executable."""
        return self.folder / "package" / "usr" / "bin" / _PROGRAM

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self.folder / "registry.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "registry.pid"

    @property
    def _configuration(self) -> Path:
        return self.folder / "config.yml"

    def ensure(self, log: Callable[[str], None]) -> Registry:
        """Unpacks and starts the registry unless it runs; logs each change before making it.

        Raises:
            CommandFailed: the package cannot be downloaded or unpacked.
            RegistryFailed: it did not start, or another program has the port.
        """
        registry = Registry(self.address)
        if self.pid() is not None and registry.answers():
            return registry
        if registry.answers():
            reason = "another registry, not started by this project, uses the port"
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
        """Stops the registry and returns whether it ran; *purge* removes its folder."""
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
        """Returns the identifier of its process; None if it does not run, or if another program has the number now."""
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if program_of(pid) == _PROGRAM[:15] else None  # the kernel keeps 15 characters (proc(5), comm)

    def collect_garbage(self, log: Callable[[str], None]) -> int:
        """Deletes blobs without a manifest and returns the bytes freed. The registry is stopped meanwhile.

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
        """Returns the content of its config.yml."""
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
        """Downloads Debian's package with apt and unpacks it."""
        scratch = self.folder / "fetched"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        log(f"downloading Debian's {_PACKAGE} and unpacking it into {self.folder / 'package'}")
        try:
            try:
                _run(["apt-get", "download", _PACKAGE], scratch)
            except CommandFailed:
                log("running apt-get update: the package lists do not have it")
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
        raise CommandFailed(command, 127, "the local registry is a Debian package and needs apt") from error
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, (done.stdout + done.stderr).strip()[-2000:])


def _folder_bytes(folder: Path) -> int:
    """Returns the bytes of the regular files below *folder*."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
