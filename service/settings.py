# ruff: noqa: RUF009 - `_setting` is a typed wrapper of `dataclasses.field`
"""Reads every setting from the environment. `Settings` is the one list: name, default, unit, check and description.

pydantic-settings would do the same, but adds pydantic and its compiled core to an image that validates everything else
with msgspec.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

__all__ = ["PREFIX", "Device", "Dtype", "Settings", "SettingsError"]

PREFIX: Final = "TRUTHGRAPH_"
_T = TypeVar("_T")
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]
_DEVICES: Final[Mapping[str, Device]] = {value: value for value in get_args(Device)}
_DTYPES: Final[Mapping[str, Dtype]] = {value: value for value in get_args(Dtype)}
_LOG_LEVELS: Final = {name: name for name in ("DEBUG", "INFO", "WARNING", "ERROR")}
_TRUTH: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_MOST: Final = 2**31 - 1
_MOST_SECONDS: Final = 10**9


class SettingsError(ValueError):
    """A setting with an invalid value; `field` is the name of the environment variable."""

    def __init__(self, field: str, value: str, allowed: str) -> None:
        super().__init__(f"{field}={value!r}: must be {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


# Parsers take a value without surrounding blanks, never an empty one, and raise ValueError with what is allowed.


def _whole(lowest: int = 1, highest: int = _MOST) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not lowest <= int(text) <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return int(text)

    return parse


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < _MOST_SECONDS:
        raise ValueError("zero or a positive number")
    return number


def _positive(text: str) -> float:
    try:
        number = _not_negative(text)
    except ValueError:
        number = 0.0
    if not number:
        raise ValueError("a positive number")
    return number


def _one_of(allowed: Mapping[str, _T]) -> Callable[[str], _T]:
    def parse(text: str) -> _T:
        if text not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return allowed[text]

    return parse


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(word) for word in _words(text))
    except ValueError as error:
        raise ValueError("addresses or networks, separated by commas") from error


def _postgres_url(text: str) -> str:
    if urlsplit(text).scheme not in {"postgresql", "postgres"}:
        raise ValueError("a URL that starts with postgresql://")
    return text


def _setting(
    default: _T, parse: Callable[[str], _T], description: str, *, name: str = "", is_secret: bool = False
) -> _T:
    """One setting. `name` without `PREFIX`; empty is the field's name in capitals."""
    metadata = {"parse": parse, "description": description, "name": name, "is_secret": is_secret}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration of a process, read once at its start."""

    host: str = _setting("127.0.0.1", str, "address to listen on")
    port: int = _setting(8000, _whole(0, 65_535), "port to listen on, 0 for any")
    shutdown_delay_seconds: float = _setting(
        0.0,
        _not_negative,
        "seconds to keep accepting connections after SIGTERM, while load balancers and DNS catch up; a second signal "
        "skips the wait",
    )
    drain_seconds: float = _setting(
        8.0,
        _positive,
        "seconds to finish accepted requests after that; Docker sends SIGKILL ten seconds after SIGTERM",
    )

    database_url: str | None = _setting(
        None,
        _postgres_url,
        "URL of the database, postgresql://...; or DATABASE_URL_FILE, a file that contains it",
        is_secret=True,
    )
    database_pool_connections: int = _setting(10, _whole(), "maximum number of connections to the database")
    database_timeout_seconds: float = _setting(5.0, _positive, "seconds to wait for a connection or a statement")

    models_directory: Path = _setting(Path("/opt/models"), Path, "folder of the models in the image", name="MODELS_DIR")
    added_models_directory: Path | None = _setting(
        None,
        Path,
        "folder of more models, on a volume; a model of the same name in the image takes precedence",
        name="ADDED_MODELS_DIR",
    )
    cache_directory: Path | None = _setting(
        None,
        Path,
        "folder for downloads of `models add` (default: that of the hub client); serving writes nothing",
        name="CACHE_DIR",
    )
    embedding_model: str = _setting("all-MiniLM-L6-v2", str, "name of the embedding model")
    entailment_model: str | None = _setting(
        None, str, "name of the entailment model (default: none; /verify answers 503)"
    )
    device: Device = _setting("auto", _one_of(_DEVICES), "device of the models: auto, cpu, cuda")
    dtype: Dtype = _setting("auto", _one_of(_DTYPES), "precision of the weights: auto, float32, bfloat16")
    compute_threads: int | None = _setting(None, _whole(), "CPU threads of the models (default: the usable cores)")
    batch_tokens: int | None = _setting(
        None, _whole(), "maximum number of padded tokens in one forward pass (default: depends on the device)"
    )
    queue_tokens: int = _setting(131_072, _whole(), "maximum number of tokens that wait for the device")
    request_seconds: float = _setting(
        30.0, _positive, "deadline of a request in seconds; a request that cannot meet it is refused at once"
    )
    stall_seconds: float = _setting(
        60.0, _positive, "seconds after which a running forward pass makes the service unhealthy"
    )

    body_bytes: int = _setting(2_000_000, _whole(), "maximum size of a request's body in bytes")
    log_level: str = _setting("INFO", _one_of(_LOG_LEVELS), "minimum level of log lines: DEBUG, INFO, WARNING, ERROR")
    allow_anonymous: bool = _setting(
        default=False, parse=_one_of(_TRUTH), description="accept callers without an API key, from any address"
    )
    rate_limits: bool = _setting(default=True, parse=_one_of(_TRUTH), description="enforce the keys' rate limits")
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _setting(
        (), _networks, "trusted senders of X-Forwarded-For: addresses or networks, separated by commas"
    )
    allowed_origins: tuple[str, ...] = _setting(
        (), _words, "origins of web pages that may call the API, separated by commas"
    )
    task_workers: int = _setting(1, _whole(0), "verification tasks that run at the same time")
    task_seconds: float = _setting(120.0, _positive, "seconds after which another worker may take a task over")
    task_attempts: int = _setting(3, _whole(), "attempts of a task before it fails")
    task_expiry_days: float = _setting(7.0, _positive, "days after which a finished task is deleted")
    opentelemetry: bool = _setting(
        default=False,
        parse=_one_of(_TRUTH),
        description="send traces over OTLP, configured by the standard OTEL_ variables",
    )
    unknown: tuple[str, ...] = ()
    """Variables with our prefix that are no settings: misspelt, or injected by an orchestrator. Logged, not refused."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Reads `environment` (default: the process's); raises `SettingsError` for an invalid value.

        A variable that is empty counts as absent: compose files write `NAME=`.
        """
        given = {name: value.strip() for name, value in (os.environ if environment is None else environment).items()}
        given = {name: value for name, value in given.items() if name.startswith(PREFIX)}
        file = given.pop(f"{PREFIX}DATABASE_URL_FILE", "")
        values: dict[str, Any] = {}
        for variable, setting in _settings():
            text, source = given.pop(variable, ""), variable
            if setting.name == "database_url" and file:
                text, source = _read_url_file(text, file), f"{PREFIX}DATABASE_URL_FILE"
            if text:
                try:
                    values[setting.name] = setting.metadata["parse"](text)
                except ValueError as error:
                    shown = "..." if setting.metadata["is_secret"] else text
                    raise SettingsError(source, shown, str(error)) from error
        return cls(**values, unknown=tuple(sorted(given)))

    @staticmethod
    def describe() -> str:
        """Returns one line for each setting: variable, default, description."""
        rows = [(variable, _shown(setting.default), setting) for variable, setting in _settings()]
        width = max(len(variable) for variable, _, _ in rows)
        return "\n".join(
            f"  {variable:<{width}}  {setting.metadata['description']}{default}" for variable, default, setting in rows
        )

    def models_directory_of(self, name: str) -> Path:
        """Returns the directory to load the model `name` from: the image's, or else that of added models."""
        added = self.added_models_directory
        if added is None or (self.models_directory / name).is_dir() or not (added / name).is_dir():
            return self.models_directory
        return added


def _settings() -> Iterator[tuple[str, Field[Any]]]:
    """Yields the environment variable and the field of each setting."""
    for each in fields(Settings):
        if each.metadata:
            yield PREFIX + (each.metadata["name"] or each.name.upper()), each


def _read_url_file(url: str, file: str) -> str:
    """Reads the database URL from a file, such as a mounted secret."""
    variable = f"{PREFIX}DATABASE_URL_FILE"
    if url:
        raise SettingsError(variable, file, f"absent if {PREFIX}DATABASE_URL is set")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(variable, file, f"a readable file ({error.strerror})") from error


def _shown(default: object) -> str:
    if default is None or default == ():
        return ""
    return f" (default: {str(default).lower() if isinstance(default, bool) else default})"
