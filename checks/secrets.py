"""Searches files for secrets: private keys, tokens, passwords, certificates and the caller's build secrets.

`SecretScanner` scans one file at a time. Each rule has a name, and one check reports its matches.

detect-secrets is not used: it scans text files line by line in Python, and finds neither build secrets nor
certificates. These rules scan every byte of all layers, including 4 GB of binaries, while the layers are read.
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

__all__ = ["SecretMatch", "SecretScanner", "certificate_fingerprints"]

PATTERN_MINIMUM_BYTES = 6  # shorter values ("on", a port number) are not secret and occur everywhere
# The public package index is not secret, and packages mention it in their documentation.
PUBLIC_INDEX_HOSTS: frozenset[str]
try:
    from pip._internal.models.index import PyPI, TestPyPI
except ImportError:  # without pip, the public index counts as a secret like any other
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

# (literal prefix, pattern, description). The search for the prefix comes first: it is ten times faster than a pattern.
# The patterns are those that the issuers document, or that their own secret scanners publish.
TOKENS: tuple[tuple[bytes, re.Pattern[bytes], str], ...] = tuple(
    (literal, re.compile(rb"(?<![A-Za-z0-9_-])" + re.escape(literal) + tail + rb"(?![A-Za-z0-9])"), description)
    for literal, tail, description in (
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
# Tokens that their owners published for tests: hard-coded in transformers/testing_utils.py.
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
class SecretMatch:
    """A secret that was found: rule, path and description, never the secret itself.

    `layer` is the number of the layer from 0, -1 if unknown. `fingerprint` is the SHA-256 of a certificate.
    """

    rule: str
    path: str
    description: str
    layer: int = -1
    fingerprint: str = ""


def certificate_fingerprints(text: bytes) -> list[str]:
    """Returns the SHA-256 of the DER form of each certificate in *text*, which is PEM or DER."""
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


def secret_forms(value: str) -> set[bytes]:
    """Returns the forms in which a secret can occur: unchanged, URL-decoded, its password, as basic authorization."""
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
    return {form.encode() for form in forms if len(form) >= PATTERN_MINIMUM_BYTES}


class SecretScanner:
    """Scans files for secrets; *build_secrets* maps a name to a value that must not occur.

    `overlap_bytes` is the overlap that two consecutive pieces of a file need, so that no build secret is missed.
    """

    def __init__(self, build_secrets: Mapping[str, str]) -> None:
        self.patterns = [(name, form) for name, value in build_secrets.items() for form in sorted(secret_forms(value))]
        self.overlap_bytes = max((len(form) for _, form in self.patterns), default=1) - 1

    def scan_piece(self, path: str, data: bytes) -> Iterator[SecretMatch]:
        """Finds build secrets, and nothing else, in a piece of a file that is too large to scan at once."""
        for name, form in self.patterns:
            if form in data:
                yield SecretMatch("build secret", path, f"the value of the build secret {name}")

    def scan_text(self, path: str, text: str) -> Iterator[SecretMatch]:
        """Finds secrets in a text of the image's configuration: a label, a variable, an instruction."""
        data = text.encode()
        yield from self.scan_piece(path, data)
        yield from find_tokens(path, data)
        yield from find_credentials_in_urls(path, data)

    def scan_file(self, path: str, data: bytes) -> Iterator[SecretMatch]:
        """Finds secrets in a complete file."""
        yield from self.scan_piece(path, data)
        yield from find_tokens(path, data)
        if (b"PRIVATE KEY-----" in data and PRIVATE_KEY.search(data)) or data.startswith(PUTTY_KEY):
            yield SecretMatch("private key", path, "a private key")
        if b"CERTIFICATE-----" in data or data[:2] == b"\x30\x82":
            for fingerprint in certificate_fingerprints(data):
                yield SecretMatch("certificate", path, "a certificate", fingerprint=fingerprint)
        name = path.rpartition("/")[2]
        yield from find_password_files(path, name, data)
        if path.startswith(OWN_FOLDERS) or name.endswith(CONFIGURATION_SUFFIXES) or name in CONFIGURATION_NAMES:
            yield from find_credentials_in_urls(path, data)


def find_tokens(path: str, data: bytes) -> Iterator[SecretMatch]:
    """Finds access tokens by their prefix and pattern."""
    for literal, pattern, description in TOKENS:
        if literal in data and any(
            hashlib.sha256(found).hexdigest() not in PUBLIC_TOKENS_SHA256 for found in pattern.findall(data)
        ):
            yield SecretMatch("token", path, description)


def find_password_files(path: str, name: str, data: bytes) -> Iterator[SecretMatch]:
    """Finds files for passwords by their names; some count only with matching contents."""
    if name in SECRET_NAMES and data:
        yield SecretMatch("password file", path, SECRET_NAMES[name])
    if path.endswith(SECRET_PATHS) and data:
        yield SecretMatch("password file", path, "credentials of a command-line tool")
    if name in (".netrc", "_netrc") and NETRC_PASSWORD.search(data):
        yield SecretMatch("password file", path, "passwords for hosts")
    if name == ".npmrc" and b"_auth" in data:
        yield SecretMatch("password file", path, "credentials of a package registry")
    is_example = name.endswith((".example", ".sample", ".template"))
    if (name == ".env" or name.startswith(".env.")) and not is_example and ASSIGNED.search(data):
        yield SecretMatch("environment file", path, "settings of a developer's machine")


def find_credentials_in_urls(path: str, data: bytes) -> Iterator[SecretMatch]:
    """Finds URLs with a user and a password, except placeholders and URLs of the local machine."""
    if b"://" not in data or b"@" not in data:
        return
    for user, password, host in CREDENTIAL_IN_URL.findall(data):
        if host.lower() not in LOCAL_HOSTS and password.lower() not in PLACEHOLDERS and user != password:
            yield SecretMatch("credential in a URL", path, f"a password for {host.decode('utf-8', 'replace')}")
            return
