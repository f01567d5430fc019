"""What must never be in an image: keys, tokens, passwords, and whatever the caller handed to the build.

`SecretScanner` looks into one file at a time; each rule has a name, so that each kind of find is a check of its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SecretScanner", "Trace", "certificate_fingerprints"]

NEEDLE_MINIMUM_BYTES = 6  # shorter values ("on", a port) are no secrets and are everywhere
# The index that everybody has by default is no secret, and packages name it in their documentation.
PUBLIC_INDEX_HOSTS: frozenset[str]
try:
    from pip._internal.models.index import PyPI, TestPyPI
except ImportError:  # an environment without pip: then each address is looked for
    PUBLIC_INDEX_HOSTS = frozenset()
else:
    PUBLIC_INDEX_HOSTS = frozenset({PyPI.netloc, TestPyPI.netloc, PyPI.file_storage_domain})

CERTIFICATE = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----(.+?)-----END", re.DOTALL)
PRIVATE_KEY = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:\\n|\s)+(?:[A-Za-z-]+: [^\n]+\n\s*)*[A-Za-z0-9+/=\\\s]{64}"
)
PUTTY_KEY = b"PuTTY-User-Key-File-"
CREDENTIAL_IN_URL = re.compile(rb"[a-z][a-z0-9+.-]*://([^/\s:@'\"<>{}$]+):([^/\s@'\"<>{}$]+)@([^/\s:'\"?#]+)")
NETRC_PASSWORD = re.compile(rb"\bpassword\s+\S+")
ASSIGNED = re.compile(rb"^\s*(?:export\s+)?[A-Za-z_][A-Za-z0-9_]*\s*=\s*\S", re.MULTILINE)

# Literal beginnings come first because looking for them is ten times cheaper than any pattern. The forms are those
# that the issuers document or that their own secret scanners publish.
TOKENS: tuple[tuple[bytes, re.Pattern[bytes], str], ...] = tuple(
    (literal, re.compile(rb"(?<![A-Za-z0-9_-])" + re.escape(literal) + tail + rb"(?![A-Za-z0-9])"), what)
    for literal, tail, what in (
        (b"ghp_", rb"[A-Za-z0-9]{36}", "a GitHub token"),
        (b"gho_", rb"[A-Za-z0-9]{36}", "a GitHub token"),
        (b"ghs_", rb"[A-Za-z0-9]{36}", "a GitHub token"),
        (b"github_pat_", rb"[A-Za-z0-9_]{70,}", "a GitHub token"),
        (b"glpat-", rb"[A-Za-z0-9_-]{20,}", "a GitLab token"),
        (b"hf_", rb"[A-Za-z0-9]{34}", "a Hugging Face token"),
        (b"xoxb-", rb"[A-Za-z0-9-]{20,}", "a Slack token"),
        (b"xoxp-", rb"[A-Za-z0-9-]{20,}", "a Slack token"),
        (b"AKIA", rb"[0-9A-Z]{16}", "an AWS access key"),
        (b"AIza", rb"[0-9A-Za-z_-]{35}", "a Google API key"),
        (b"sk-proj-", rb"[A-Za-z0-9_-]{20,}", "an OpenAI key"),
        (b"sk-ant-", rb"[A-Za-z0-9_-]{20,}", "an Anthropic key"),
        (b"pypi-AgE", rb"[A-Za-z0-9_-]{30,}", "a PyPI token"),
        (b"npm_", rb"[A-Za-z0-9]{36}", "an npm token"),
        (b"dckr_pat_", rb"[A-Za-z0-9_-]{20,}", "a Docker Hub token"),
        (b"nvapi-", rb"[A-Za-z0-9_-]{40,}", "an NVIDIA API key"),
    )
)
# Tokens that their owners published for testing: hard-coded in transformers/testing_utils.py.
PUBLIC_TOKENS_SHA256: frozenset[str] = frozenset(
    {
        "5de261506c0ff857b7c1af7059f842fb0a36d1ca2e4895da542c5eb726f2c802",
    }
)
SECRET_NAMES = {
    ".git-credentials": "stored git credentials",
    ".pypirc": "credentials for uploading packages",
    ".pgpass": "database passwords",
    ".my.cnf": "database passwords",
    ".htpasswd": "passwords",
    "id_rsa": "a private SSH key",
    "id_dsa": "a private SSH key",
    "id_ecdsa": "a private SSH key",
    "id_ed25519": "a private SSH key",
}
SECRET_PATHS = ("/.aws/credentials", "/.docker/config.json", "/.kube/config", "/.config/gcloud/credentials.db")
CONFIGURATION_SUFFIXES = (".conf", ".cfg", ".ini", ".toml", ".env", ".sh", ".yaml", ".yml", ".txt", ".list", "rc")
CONFIGURATION_NAMES = {"direct_url.json", "config", ".env", "environment", "sources.list"}
OWN_FOLDERS = ("/etc/", "/root/", "/home/", "/app/")
LOCAL_HOSTS = {b"localhost", b"127.0.0.1", b"host", b"hostname", b"example.com", b"db", b"postgres"}
PLACEHOLDERS = {b"password", b"pass", b"passwd", b"secret", b"pwd", b"xxx", b"***"}


@dataclass(frozen=True, slots=True)
class Trace:
    """One find: the rule that found it, where, and what it is; never the secret itself."""

    rule: str
    path: str
    what: str
    layer: int = -1
    fingerprint: str = ""


def certificate_fingerprints(text: bytes) -> list[str]:
    """The SHA-256 of each certificate's DER form, for PEM blocks in *text* or *text* that is DER itself."""
    found = []
    for block in CERTIFICATE.findall(text):
        try:
            der = base64.b64decode(re.sub(rb"\\[rn]|\s", b"", block), validate=True)
        except binascii.Error:
            continue
        found.append(hashlib.sha256(der).hexdigest())
    if text[:2] == b"\x30\x82" and len(text) == int.from_bytes(text[2:4], "big") + 4:
        found.append(hashlib.sha256(text).hexdigest())
    return found


def needles_of(value: str) -> set[bytes]:
    """The forms in which a secret value shows up: itself, decoded, its password, and as basic authorisation."""
    forms = {value, unquote(value)}
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme and parts.hostname:
        if parts.hostname in PUBLIC_INDEX_HOSTS:
            forms = set()
        if parts.password:
            pair = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
            forms |= {value, parts.password, unquote(parts.password), pair}
            forms.add(base64.b64encode(pair.encode()).decode())
    forms |= {base64.b64encode(form.encode()).decode().rstrip("=") for form in forms}
    return {form.encode() for form in forms if len(form) >= NEEDLE_MINIMUM_BYTES}


class SecretScanner:
    """The rules, ready to look into files: *handed_in* maps a name to the plain value that must not be found."""

    def __init__(self, handed_in: Mapping[str, str], certificates_sha256: frozenset[str] = frozenset()) -> None:
        self.patterns = [(name, needle) for name, value in handed_in.items() for needle in sorted(needles_of(value))]
        self.certificates_sha256 = certificates_sha256
        self.overlap_bytes = max((len(needle) for _, needle in self.patterns), default=1) - 1

    def of_piece(self, path: str, data: bytes) -> Iterator[Trace]:
        """Finds in a piece of a file too big to look at as a whole: what was handed in, and nothing else."""
        for name, needle in self.patterns:
            if needle in data:
                yield Trace("handed-in", path, f"the value handed in as {name}")

    def of_text(self, path: str, text: str) -> Iterator[Trace]:
        """Finds in a piece of the image's configuration: a label, a variable, an instruction of the history."""
        data = text.encode()
        yield from self.of_piece(path, data)
        yield from tokens(path, data)
        yield from credentials_in_urls(path, data)

    def of_file(self, path: str, data: bytes) -> Iterator[Trace]:
        """Finds in a whole file."""
        yield from self.of_piece(path, data)
        yield from tokens(path, data)
        if (b"PRIVATE KEY-----" in data and PRIVATE_KEY.search(data)) or data.startswith(PUTTY_KEY):
            yield Trace("private key", path, "a private key")
        if b"CERTIFICATE-----" in data or data[:2] == b"\x30\x82":
            for fingerprint in certificate_fingerprints(data):
                yield Trace("certificate", path, "a certificate", fingerprint=fingerprint)
        name = path.rpartition("/")[2]
        yield from named(path, name, data)
        if path.startswith(OWN_FOLDERS) or name.endswith(CONFIGURATION_SUFFIXES) or name in CONFIGURATION_NAMES:
            yield from credentials_in_urls(path, data)


def tokens(path: str, data: bytes) -> Iterator[Trace]:
    """Tokens whose form gives them away."""
    for literal, pattern, what in TOKENS:
        if literal in data and any(
            hashlib.sha256(found).hexdigest() not in PUBLIC_TOKENS_SHA256 for found in pattern.findall(data)
        ):
            yield Trace("token", path, what)


def named(path: str, name: str, data: bytes) -> Iterator[Trace]:
    """Files that exist to hold passwords, when they hold any."""
    if name in SECRET_NAMES and data:
        yield Trace("password file", path, SECRET_NAMES[name])
    if path.endswith(SECRET_PATHS) and data:
        yield Trace("password file", path, "credentials of a command-line tool")
    if name in (".netrc", "_netrc") and NETRC_PASSWORD.search(data):
        yield Trace("password file", path, "passwords for hosts")
    if name == ".npmrc" and b"_auth" in data:
        yield Trace("password file", path, "credentials of a package registry")
    is_example = name.endswith((".example", ".sample", ".template"))
    if (name == ".env" or name.startswith(".env.")) and not is_example and ASSIGNED.search(data):
        yield Trace("environment file", path, "settings of somebody's machine")


def credentials_in_urls(path: str, data: bytes) -> Iterator[Trace]:
    """Addresses that carry a user and a password, other than placeholders and this very machine's."""
    if b"://" not in data or b"@" not in data:
        return
    for user, password, host in CREDENTIAL_IN_URL.findall(data):
        if host.lower() not in LOCAL_HOSTS and password.lower() not in PLACEHOLDERS and user != password:
            yield Trace("credential in an address", path, f"a password for {host.decode('utf-8', 'replace')}")
            return
