from __future__ import annotations

import base64

import pytest
from pip._internal.models.index import PyPI

from checks.secrets import SecretScanner, certificate_fingerprints
from tests.checks.faults import DER, KEY, PEM, TOKEN

NOTHING = SecretScanner({})


def rules(path: str, content: str | bytes) -> list[str]:
    """Returns the rules that match in a file."""
    data = content if isinstance(content, bytes) else content.encode()
    return [match.rule for match in NOTHING.scan_file(path, data)]


@pytest.mark.parametrize(
    ("path", "content", "rule"),
    [
        ("/srv/a", KEY, "private key"),
        ("/srv/a.json", KEY.replace("\n", "\\n"), "private key"),
        ("/srv/a.ppk", "PuTTY-User-Key-File-3: ssh-ed25519\n", "private key"),
        ("/srv/a.pyc", TOKEN, "token"),
        ("/srv/a", "hf_" + "a" * 34, "token"),
        ("/srv/a", "key = AKIA" + "A" * 16, "token"),
        ("/root/.pypirc", "[pypi]\n", "password file"),
        ("/root/.aws/credentials", "[default]\n", "password file"),
        ("/root/.docker/config.json", '{"auths": {}}', "password file"),
        ("/root/.netrc", "machine a login b password c", "password file"),
        ("/app/.env.production", "export A=1\n", "environment file"),
        ("/etc/uv.toml", 'url = "https://a:bcd@mirror.invalid"', "credential in a URL"),
        ("/opt/x/direct_url.json", '{"url": "https://a:bcd@git.invalid/x"}', "credential in a URL"),
    ],
)
def test_secret_is_found(path: str, content: str, rule: str) -> None:
    assert rules(path, content) == [rule]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/srv/a.py", 'BEGIN = "-----BEGIN PRIVATE KEY-----"\n'),
        ("/srv/a.py", "ghp_ and hf_ are prefixes, sk- is another"),
        ("/srv/a.py", "x" + TOKEN),
        ("/root/.netrc", "# nothing here"),
        ("/app/.env", "# DEBUG=1\n"),
        ("/app/.env.example", "DEBUG=1\n"),
        ("/etc/a.conf", "postgresql://user:password@db/x"),
        ("/etc/a.conf", "postgresql://${USER}:${PASSWORD}@db/x"),
        ("/opt/venv/a.py", "https://a:bcd@mirror.invalid"),
        ("/root/.pypirc", ""),
    ],
)
def test_lookalike_of_a_secret_is_not_found(path: str, content: str) -> None:
    assert rules(path, content) == []


@pytest.mark.parametrize(
    "text",
    [
        "https://robot:s3cr3t%2Fw0rd@packages.invalid/simple",
        "password=s3cr3t%2Fw0rd",
        "password=s3cr3t/w0rd",
        "Authorization: Basic " + base64.b64encode(b"robot:s3cr3t/w0rd").decode(),
    ],
)
def test_build_secret_is_found_in_every_form(text: str) -> None:
    scanner = SecretScanner({"index": "https://robot:s3cr3t%2Fw0rd@packages.invalid/simple"})
    assert [match.rule for match in scanner.scan_piece("/srv/a", text.encode())][:1] == ["build secret"]


def test_finding_does_not_contain_the_secret() -> None:
    found = list(
        SecretScanner({"index": "https://a:s3cr3t-w0rd@b.invalid"}).scan_text("a label", "s3cr3t-w0rd " + TOKEN)
    )
    assert found
    assert not any("s3cr3t" in str(match) or TOKEN in str(match) for match in found)


@pytest.mark.parametrize("value", ["", "on", f"https://{PyPI.netloc}/simple"])
def test_public_value_is_not_a_build_secret(value: str) -> None:
    assert SecretScanner({"index": value}).patterns == []


def test_certificate_has_one_fingerprint_in_every_form() -> None:
    expected = certificate_fingerprints(DER)
    assert len(expected) == 1
    unwrapped = PEM.replace("\n", "").replace("-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\n")
    for form in (PEM, f"# bundle\n{PEM}\n", PEM.replace("\n", "\r\n"), PEM.replace("\n", "\\n"), unwrapped):
        assert certificate_fingerprints(form.encode()) == expected


def test_broken_certificate_has_no_fingerprint() -> None:
    assert certificate_fingerprints(b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----") == []
