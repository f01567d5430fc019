"""The one place that reads the environment: every setting, its default, its unit and its check."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

__all__ = ["PREFIX", "Device", "Dtype", "Settings", "SettingsError"]

PREFIX: Final = "TRUTHGRAPH_"
_T = TypeVar("_T")
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]
_DEVICES: Final[dict[str, Device]] = {value: value for value in get_args(Device)}
_DTYPES: Final[dict[str, Dtype]] = {value: value for value in get_args(Dtype)}
_LOG_LEVELS: Final = {name: name for name in ("DEBUG", "INFO", "WARNING", "ERROR")}


class SettingsError(ValueError):
    """A setting that cannot be used; `field` is the environment variable's name."""

    def __init__(self, field: str, value: str, allowed: str) -> None:
        super().__init__(f"{field}={value!r}: must be {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a process of the service is told once, at start. The environment's names are `PREFIX` + the field's."""

    host: str = "127.0.0.1"
    port: int = 8000
    drain_seconds: float = 8.0
    """Docker sends SIGKILL ten seconds after SIGTERM; we are gone before that."""
    shutdown_delay_seconds: float = 0.0
    """How long after SIGTERM new connections are still taken, before draining begins: whoever sends requests here
    learns of the end by readiness or from a name server, a moment late. Another signal ends it."""

    database_url: str | None = None
    database_pool_connections: int = 10
    database_timeout_seconds: float = 5.0

    models_directory: Path = Path("/opt/models")
    added_models_directory: Path | None = None
    """Where models lie that are not in the image, a volume; of two with one name the image's own is taken."""
    cache_directory: Path | None = None
    """Where downloads of `models add` are kept; None is the hub client's own place. Serving writes nothing."""
    embedding_model: str = "all-MiniLM-L6-v2"
    entailment_model: str | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    compute_threads: int | None = None
    batch_tokens: int | None = None
    """Padded tokens of one forward pass; None takes the device's own default."""
    queue_tokens: int = 131_072
    request_seconds: float = 30.0
    """The deadline of one request; work that cannot be done within it is refused at once."""
    stall_seconds: float = 60.0
    """A forward pass that takes longer than this makes readiness false."""

    body_bytes: int = 2_000_000
    log_level: str = "INFO"
    allow_anonymous: bool = False
    """Serve callers without a key even when they are not on this machine."""
    rate_limits: bool = True
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    task_workers: int = 1
    task_seconds: float = 120.0
    """How long a worker may hold a verification task before another takes it over."""
    task_attempts: int = 3
    task_expiry_days: float = 7.0
    opentelemetry: bool = False
    unknown: tuple[str, ...] = ()
    """Names with our prefix that mean nothing (misspelt, or injected by an orchestrator): logged, not refused."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read `environment` (the process's own by default); raise `SettingsError` for a value that cannot be used."""
        reader = _Reader(os.environ if environment is None else environment)
        defaults = cls()
        settings = cls(
            host=reader.text("HOST") or defaults.host,
            port=reader.integer("PORT", defaults.port, lowest=0, highest=65_535),
            drain_seconds=reader.seconds("DRAIN_SECONDS", defaults.drain_seconds),
            shutdown_delay_seconds=reader.seconds("SHUTDOWN_DELAY_SECONDS", defaults.shutdown_delay_seconds),
            database_url=reader.database_url(),
            database_pool_connections=reader.integer("DATABASE_POOL_CONNECTIONS", defaults.database_pool_connections),
            database_timeout_seconds=reader.seconds("DATABASE_TIMEOUT_SECONDS", defaults.database_timeout_seconds),
            models_directory=Path(reader.text("MODELS_DIR") or defaults.models_directory),
            added_models_directory=Path(added) if (added := reader.text("ADDED_MODELS_DIR")) else None,
            cache_directory=Path(cache) if (cache := reader.text("CACHE_DIR")) else None,
            embedding_model=reader.text("EMBEDDING_MODEL") or defaults.embedding_model,
            entailment_model=reader.text("ENTAILMENT_MODEL"),
            device=reader.choice("DEVICE", defaults.device, _DEVICES),
            dtype=reader.choice("DTYPE", defaults.dtype, _DTYPES),
            compute_threads=reader.optional_integer("COMPUTE_THREADS"),
            batch_tokens=reader.optional_integer("BATCH_TOKENS"),
            queue_tokens=reader.integer("QUEUE_TOKENS", defaults.queue_tokens),
            request_seconds=reader.seconds("REQUEST_SECONDS", defaults.request_seconds),
            stall_seconds=reader.seconds("STALL_SECONDS", defaults.stall_seconds),
            body_bytes=reader.integer("BODY_BYTES", defaults.body_bytes),
            log_level=reader.choice("LOG_LEVEL", defaults.log_level, _LOG_LEVELS),
            allow_anonymous=reader.truth("ALLOW_ANONYMOUS", default=defaults.allow_anonymous),
            rate_limits=reader.truth("RATE_LIMITS", default=defaults.rate_limits),
            trusted_proxies=reader.networks("TRUSTED_PROXIES"),
            allowed_origins=reader.words("ALLOWED_ORIGINS"),
            task_workers=reader.integer("TASK_WORKERS", defaults.task_workers, lowest=0),
            task_seconds=reader.seconds("TASK_SECONDS", defaults.task_seconds),
            task_attempts=reader.integer("TASK_ATTEMPTS", defaults.task_attempts),
            task_expiry_days=reader.seconds("TASK_EXPIRY_DAYS", defaults.task_expiry_days),
            opentelemetry=reader.truth("OPENTELEMETRY", default=defaults.opentelemetry),
        )
        return replace(settings, unknown=reader.unknown())

    def models_directory_of(self, name: str) -> Path:
        """The one of the two directories of models to look for the model `name` in."""
        added = self.added_models_directory
        if added is None or (self.models_directory / name).is_dir() or not (added / name).is_dir():
            return self.models_directory
        return added


class _Reader:
    """Typed look-ups by name, remembering which names were asked for."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._known: set[str] = set()

    def text(self, name: str) -> str | None:
        """The value without surrounding blanks; an empty one counts as absent (compose files write `NAME=`)."""
        self._known.add(PREFIX + name)
        return self._environment.get(PREFIX + name, "").strip() or None

    def optional_integer(self, name: str, *, lowest: int = 1, highest: int = 2**31 - 1) -> int | None:
        text = self.text(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or not lowest <= int(text) <= highest:
            raise SettingsError(PREFIX + name, text, f"a whole number from {lowest} to {highest}")
        return int(text)

    def integer(self, name: str, default: int, *, lowest: int = 1, highest: int = 2**31 - 1) -> int:
        number = self.optional_integer(name, lowest=lowest, highest=highest)
        return default if number is None else number

    def seconds(self, name: str, default: float) -> float:
        text = self.text(name)
        if text is None:
            return default
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 < number < 10**9:
            raise SettingsError(PREFIX + name, text, "a positive number")
        return number

    def truth(self, name: str, *, default: bool) -> bool:
        return self.choice(
            name, default, {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        )

    def choice(self, name: str, default: _T, allowed: Mapping[str, _T]) -> _T:
        text = self.text(name)
        if text is None:
            return default
        if text not in allowed:
            raise SettingsError(PREFIX + name, text, f"one of {', '.join(allowed)}")
        return allowed[text]

    def words(self, name: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in (self.text(name) or "").split(",") if word.strip())

    def networks(self, name: str) -> tuple[IPv4Network | IPv6Network, ...]:
        words = self.words(name)
        try:
            return tuple(ip_network(word) for word in words)
        except ValueError as error:
            raise SettingsError(PREFIX + name, ",".join(words), "addresses or networks, comma separated") from error

    def database_url(self) -> str | None:
        """The address itself, or the content of the file that DATABASE_URL_FILE names (a mounted secret)."""
        url, file = self.text("DATABASE_URL"), self.text("DATABASE_URL_FILE")
        name = "DATABASE_URL"
        if file is not None:
            name = "DATABASE_URL_FILE"
            if url is not None:
                raise SettingsError(PREFIX + name, file, f"absent when {PREFIX}DATABASE_URL is set")
            try:
                url = Path(file).read_text(encoding="utf-8").strip() or None
            except OSError as error:
                raise SettingsError(PREFIX + name, file, f"a readable file ({error.strerror})") from error
        if url is not None and urlsplit(url).scheme not in {"postgresql", "postgres"}:
            # The value may hold a password, so it is not repeated.
            raise SettingsError(PREFIX + name, "...", "an address that starts with postgresql://")
        return url

    def unknown(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in self._environment.keys() - self._known if name.startswith(PREFIX)))
