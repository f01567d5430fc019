"""Reads BuildKit's events of a build (`--progress=rawjson`) into steps.

Source of the format: moby/buildkit `client/graph.go`, SolveStatus: vertexes, statuses, logs, warnings; times in RFC
3339 with nanoseconds, log data in base64. buildx 0.13 writes an object on many lines, later versions on one.
"""

from __future__ import annotations

import base64
import re
from collections import deque
from datetime import UTC, datetime

import msgspec

__all__ = ["Events", "Step", "SubStep"]

_NAMED = re.compile(r"^\[(?P<stage>[^\]]+?)(?: +\d+/\d+)?\] (?P<instruction>.*)$", re.DOTALL)
_NANOSECONDS = re.compile(r"\.(\d{6})\d*")
_EXIT_CODE = re.compile(r"did not complete successfully: exit code: (\d+)")
_LOG_LINES = 40


class SubStep(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a step: "exporting layers", "unpacking to …", "transferring context:".

    Attributes:
        total: BuildKit's count of the part's work, in bytes for transfers.
        started: seconds since the Unix epoch.
    """

    name: str
    seconds: float
    total: int
    started: float


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One finished vertex of the build graph.

    Attributes:
        stage: the stage of the Dockerfile; "internal", "context" or "export" for steps that BuildKit adds.
        instruction: the instruction of the Dockerfile, without its mounts.
        started: seconds since the Unix epoch; None if it never ran.
        seconds: its duration; 0.0 if it never ran or was cached.
        cached: whether its result was in the cache.
        error: why it failed; "" if it did not.
    """

    stage: str
    instruction: str
    started: float | None
    seconds: float
    cached: bool
    error: str
    parts: tuple[SubStep, ...]


class _Vertex(msgspec.Struct):
    digest: str
    name: str = ""
    started: str | None = None
    completed: str | None = None
    cached: bool = False
    error: str = ""


class _Status(msgspec.Struct):
    id: str
    vertex: str
    current: int = 0
    started: str | None = None
    completed: str | None = None


class _Log(msgspec.Struct):
    vertex: str
    data: str = ""


class _Event(msgspec.Struct):
    vertexes: list[_Vertex] | None = None
    statuses: list[_Status] | None = None
    logs: list[_Log] | None = None


class Events:
    """Collects the events of a build; `steps` and `running` can be read at any time.

    `other_lines` holds the lines that are not events, for example an error that `docker` prints.
    """

    def __init__(self) -> None:
        self.other_lines: list[str] = []
        self._decoder = msgspec.json.Decoder(_Event)
        self._partial: list[str] = []
        self._vertexes: dict[str, _Vertex] = {}
        self._statuses: dict[str, dict[str, _Status]] = {}
        self._logs: dict[str, deque[str]] = {}

    def feed(self, line: str) -> list[Step]:
        """Reads one line of output and returns the steps that it finishes, in order."""
        text = line.rstrip("\n")
        if self._partial or text == "{":
            self._partial.append(text)
            if text != "}":
                return []
            text = "".join(self._partial)
            self._partial = []
        if not text.startswith("{"):
            if text.strip():
                self.other_lines.append(text)
            return []
        try:
            event = self._decoder.decode(text)
        except msgspec.DecodeError:
            self.other_lines.append(text)
            return []
        return self._take(event)

    def _take(self, event: _Event) -> list[Step]:
        ended: list[Step] = []
        for status in event.statuses or ():
            self._statuses.setdefault(status.vertex, {})[status.id] = status
        for log in event.logs or ():
            self._take_log(log)
        for vertex in event.vertexes or ():
            before = self._vertexes.get(vertex.digest)
            if before and not vertex.name:
                vertex.name = before.name
            self._vertexes[vertex.digest] = vertex
            if vertex.completed and not (before and before.completed and before.started == vertex.started):
                ended.append(self._step(vertex))
        return ended

    def _take_log(self, log: _Log) -> None:
        """Adds a piece of a step's output; a piece may begin and end inside a line."""
        lines = self._logs.setdefault(log.vertex, deque([""], maxlen=_LOG_LINES))
        first, *rest = base64.b64decode(log.data).decode(errors="replace").split("\n")
        lines[-1] += first
        lines.extend(rest)

    def _step(self, vertex: _Vertex) -> Step:
        match = _NAMED.match(vertex.name)
        stage, instruction = (match["stage"], match["instruction"]) if match else ("", vertex.name)
        if not match:
            stage = "export" if vertex.name.startswith("exporting") else "internal"
        elif stage.startswith("context "):
            stage = "context"
        seconds = 0.0
        if vertex.started and vertex.completed and not vertex.cached:
            seconds = _seconds(vertex.completed) - _seconds(vertex.started)
        return Step(
            stage=stage,
            instruction=shorten(instruction),
            started=_seconds(vertex.started) if vertex.started else None,
            seconds=round(seconds, 3),
            cached=vertex.cached,
            error=vertex.error,
            parts=tuple(
                SubStep(
                    name=status.id,
                    seconds=round(_seconds(status.completed) - _seconds(status.started), 3),
                    total=status.current,
                    started=_seconds(status.started),
                )
                for status in self._statuses.get(vertex.digest, {}).values()
                if status.started and status.completed
            ),
        )

    @property
    def steps(self) -> list[Step]:
        """The steps so far, in the order in which they started; those that never ran come last."""
        steps = [self._step(vertex) for vertex in self._vertexes.values()]
        return sorted(steps, key=lambda step: step.started if step.started is not None else float("inf"))

    @property
    def running(self) -> list[tuple[Step, float, str]]:
        """The running steps: the step, seconds since its start, and its current part or the last line of its log."""
        now = datetime.now(tz=UTC).timestamp()
        found = []
        for digest, vertex in self._vertexes.items():
            if vertex.started and not vertex.completed:
                open_parts = [s.id for s in self._statuses.get(digest, {}).values() if not s.completed]
                lines = [line for line in self._logs.get(digest, ()) if line.strip()]
                detail = open_parts[-1] if open_parts else (lines[-1] if lines else "")
                found.append((self._step(vertex), max(0.0, now - _seconds(vertex.started)), detail))
        return found

    def failure(self) -> tuple[Step, int | None, str] | None:
        """Returns the step that failed first, its exit code if it has one, and the last 40 lines of its log."""
        for digest, vertex in self._vertexes.items():
            if vertex.error and "context canceled" not in vertex.error:
                match = _EXIT_CODE.search(vertex.error)
                return (
                    self._step(vertex),
                    int(match[1]) if match else None,
                    "\n".join(self._logs.get(digest, ())).rstrip(),
                )
        return None


def shorten(instruction: str) -> str:
    """Returns the instruction on one line, without its mounts."""
    return re.sub(r"\s+", " ", re.sub(r"--mount=\S+", "", instruction)).strip()


def _seconds(time: str) -> float:
    return datetime.fromisoformat(_NANOSECONDS.sub(r".\1", time)).timestamp()
