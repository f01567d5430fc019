"""Collects the build secrets of the caller's environment: certificates, package indexes, credentials.

None of them may end up in an image. They reach RUN steps as BuildKit secrets or as predefined proxy arguments, which
are in no layer, no history and no label. `checks/` verifies that.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from buildkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BuildSecrets"]

_CERTIFICATE_VARIABLES: Final = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_INDEX_VARIABLES: Final = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|INSECURE_HOST|INDEX_\w+_(USERNAME|PASSWORD))"
    r"|PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST)"
)
"""Names from the documentation of uv ("Environment variables") and pip ("Configuration")."""

_PROXY_VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
"""BuildKit's predefined arguments: set in every RUN, stored in no layer and no history (Dockerfile reference)."""

_MINIMUM_SECRET_CHARACTERS: Final = 6
"""Shorter words occur in large files by chance."""


@dataclass(frozen=True, slots=True)
class BuildSecrets:
    """The secrets of one build.

    Attributes:
        certificates: a bundle of CA certificates in PEM form; None if the environment names none.
        index: package indexes and credentials, as variables of uv and pip.
        netrc: the caller's .netrc; None if there is none.
        proxies: proxy variables, with names in upper or lower case as in the environment.
    """

    certificates: Path | None
    index: Mapping[str, str]
    netrc: Path | None
    proxies: Mapping[str, str]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> BuildSecrets:
        """Returns the secrets that pip, uv and curl would use on this machine with *environment*.

        Raises:
            UsageError: a variable names a bundle of certificates that does not exist.
        """
        certificates = None
        for name in _CERTIFICATE_VARIABLES:
            if environment.get(name):
                certificates = Path(environment[name])
                if not certificates.is_file():
                    fix = "no such file; set it to a bundle of certificates in PEM form"
                    raise UsageError(name, environment[name], fix)
                break
        netrc = Path(environment.get("NETRC") or Path(environment.get("HOME", "/nonexistent")) / ".netrc")
        names = [name for upper in _PROXY_VARIABLES for name in (upper, upper.lower())]
        return cls(
            certificates=certificates,
            index=_index_settings(environment),
            netrc=netrc if netrc.is_file() else None,
            proxies={name: environment[name] for name in names if environment.get(name)},
        )

    def buildx_secrets(self, scratch: Path) -> list[str]:
        """Returns values of `--secret` for `ca`, `index` and `netrc`; writes a private `index` to *scratch*."""
        secrets: list[str] = []
        if self.certificates is not None:
            secrets.append(f"id=ca,src={self.certificates}")
        if self.index:
            path = scratch / "index"
            path.touch(mode=0o600)
            path.write_text("".join(f"{name}={value}\n" for name, value in self.index.items()))
            secrets.append(f"id=index,src={path}")
        if self.netrc is not None:
            secrets.append(f"id=netrc,src={self.netrc}")
        return secrets

    def plain_values(self) -> dict[str, str]:
        """Returns the values that no image may contain (addresses, credentials), by names that are safe to show."""
        values = {**self.index, **self.proxies}
        for name, value in list(values.items()):
            for number, address in enumerate(value.split()):
                parts = urlsplit(address.partition("=")[2] if re.match(r"[\w-]+=\w+://", address) else address)
                for kind, secret in (("user", parts.username), ("password", parts.password)):
                    if secret and len(secret) >= _MINIMUM_SECRET_CHARACTERS:
                        values[f"{name} ({kind} {number})"] = secret
        if self.netrc is not None:
            words = self.netrc.read_text(errors="replace").split()
            for number, (key, word) in enumerate(itertools.pairwise(words)):
                if key == "password" and len(word) >= _MINIMUM_SECRET_CHARACTERS:
                    values[f"netrc password {number}"] = word
        return {name: value for name, value in values.items() if "NO_PROXY" not in name.upper()}


def _index_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns package indexes and credentials as variables of uv and pip, from the environment and pip's files."""
    found = {name: value for name, value in environment.items() if value and _INDEX_VARIABLES.fullmatch(name)}
    home = Path(environment.get("HOME", "/nonexistent"))
    for path in (
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
        Path(environment.get("PIP_CONFIG_FILE") or "/nonexistent"),
    ):
        settings = ConfigParser(interpolation=None)
        with contextlib.suppress(ConfigParserError, OSError, UnicodeDecodeError):
            settings.read(path)
        for key in ("index-url", "extra-index-url"):
            value = settings.get("global", key, fallback="")
            if value:
                found.setdefault(f"PIP_{key.upper().replace('-', '_')}", value)
    reachable = {
        # A container cannot read folders of this machine.
        name: " ".join(part for part in value.split() if not part.startswith(("file:", "/")))
        for name, value in found.items()
    }
    found = {name: value for name, value in reachable.items() if value}
    if "PIP_INDEX_URL" in found and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & found.keys():
        found["UV_DEFAULT_INDEX"] = found["PIP_INDEX_URL"]
    if "PIP_EXTRA_INDEX_URL" in found and not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & found.keys():
        found["UV_INDEX"] = found["PIP_EXTRA_INDEX_URL"]
    if "UV_DEFAULT_INDEX" in found and "PIP_INDEX_URL" not in found:
        found["PIP_INDEX_URL"] = found["UV_DEFAULT_INDEX"]
    return found
