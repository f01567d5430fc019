"""Runs one replica of a new release without traffic, beside the release that serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from buildkit.errors import StackFailed
from buildkit.staging.stack.polling import polls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit.staging.stack.services import Replica, StackServices

__all__ = ["check_canary", "start_canary", "stop_canary", "wait_for_canary"]

_SERVICE: Final = "canary"
_WORKERS: Final = "TRUTHGRAPH_TASK_WORKERS"
_MOMENT_SECONDS: Final = 5.0


def start_canary(stack: StackServices, image: str, *, seconds: float) -> str:
    """Starts one replica of *image*, configured as the API's service is, and returns its container.

    The proxy does not know its name, so it gets no traffic. It has no worker, so it takes no task.

    Raises:
        StackFailed: it ended, or did not start in time.
    """
    stop_canary(stack)
    spec = stack.inspect("api")["Spec"]["TaskTemplate"]["ContainerSpec"]
    stack.docker(
        *("service", "create", "--detach", "--quiet", "--with-registry-auth", "--no-resolve-image", "--read-only"),
        *("--name", stack.service_name(_SERVICE), "--label", f"com.docker.stack.namespace={stack.name}"),
        *("--network", f"{stack.name}_back", "--restart-condition", "none", *_options(spec, stack.settings)),
        *("--env", f"{_WORKERS}=0", image, *spec.get("Command", ()), *spec.get("Args", ())),
    )
    for _ in polls(seconds):
        for replica in stack.replicas(_SERVICE, include_ended=True):
            if replica.state in {"starting", "running"} and replica.container:
                return replica.container
            _fail_if_ended(stack, replica)
    raise StackFailed(f"the canary did not start within {seconds:.0f} s")


def wait_for_canary(stack: StackServices, *, seconds: float) -> None:
    """Waits until the canary is ready: models loaded, schema current.

    Raises:
        StackFailed: it ended, or was not ready in time.
    """
    for _ in polls(seconds):
        for replica in stack.replicas(_SERVICE, include_ended=True):
            if replica.is_running:
                return
            _fail_if_ended(stack, replica)
    tail = stack.log_tail(_SERVICE, lines=3)
    raise StackFailed(f"the canary was not ready within {seconds:.0f} s\n{tail}")


def check_canary(stack: StackServices) -> None:
    """Raises `StackFailed` with the end of its log if the canary ends within 5 seconds."""
    for _ in polls(_MOMENT_SECONDS):
        for replica in stack.replicas(_SERVICE, include_ended=True):
            _fail_if_ended(stack, replica)


def stop_canary(stack: StackServices) -> None:
    """Removes the canary if there is one."""
    if stack.exists(_SERVICE):
        stack.docker("service", "rm", stack.service_name(_SERVICE))


def _fail_if_ended(stack: StackServices, replica: Replica) -> None:
    if replica.has_failed or replica.state in {"complete", "shutdown"}:
        reason = replica.error or replica.state
        raise StackFailed(f"the canary ended: {reason}\n{stack.log_tail(_SERVICE, replica.task, 3)}")


def _options(spec: Mapping[str, Any], settings: Mapping[str, str]) -> list[str]:
    """Returns the options of `docker service create` for a container as *spec* describes it, with other *settings*."""
    options: list[str] = []
    for entry in spec.get("Env", ()):
        variable, _, value = entry.partition("=")
        if variable != _WORKERS:
            options += ["--env", f"{variable}={settings.get(variable, value)}"]
    for mount in spec.get("Mounts", ()):
        options += ["--mount", _mount(mount)]
    for secret in spec.get("Secrets", ()):
        options += ["--secret", f"source={secret['SecretName']},target={secret['File']['Name']}"]
    for capability in spec.get("CapabilityDrop", ()):
        options += ["--cap-drop", capability]
    health = spec.get("Healthcheck", {})
    if health.get("Test", [""])[0] == "CMD-SHELL":
        start = f"{health.get('StartPeriod', 0) // 1_000_000}ms"
        options += ["--health-cmd", health["Test"][1], "--health-interval", "2s", "--health-start-period", start]
    return options


def _mount(mount: Mapping[str, Any]) -> str:
    """Returns the value of `--mount` for an entry of a service's `Mounts`."""
    words = [f"type={mount['Type']}", f"target={mount['Target']}"]
    if source := mount.get("Source"):
        words.append(f"source={source}")
    if mount.get("ReadOnly"):
        words.append("readonly")
    if size := (mount.get("TmpfsOptions") or {}).get("SizeBytes"):
        words.append(f"tmpfs-size={size}")
    if (mount.get("VolumeOptions") or {}).get("NoCopy"):
        words.append("volume-nocopy=true")
    return ",".join(words)
