"""Checks that the layers and the configuration of the image have no secret, even one that a later layer hides."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from checks.results import fail_if, not_verified

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checks.expectations import Expectations, SecretFingerprint
    from checks.facts import Configuration
    from checks.layers import ImageLayers
    from checks.observations import Observations
    from checks.secrets import SecretMatch

SECRET_VARIABLE = re.compile(r"(?i).*(password|passwd|secret|token|api_?key|access_?key|private_?key|credential).*")
ASSIGNED = re.compile(r"""(?<![\w-])([A-Za-z_][A-Za-z0-9_]*)=(?!["']?\$)(?!["']*(?:\s|\Z))""")
MOUNT = "mount it in the instruction that needs it: RUN --mount=type=secret,id=NAME"
BUILD_SECRET = "build secret"  # noqa: S105 - the name of a rule
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PUBLIC_AUTHORITIES = re.compile(r"/usr/share/ca-certificates/mozilla/.*|.*/(certifi|pip/_vendor/certifi)/cacert\.pem")
RULES = {
    "a private key": "private key",
    "an access token": "token",
    "a password file (.netrc, .pypirc, .pgpass or the like)": "password file",
    "an .env file with settings": "environment file",
    "a configuration file with a user and password in a URL": "credential in a URL",
}


def found_in_layers(layers: ImageLayers, rule: str) -> Iterator[str]:
    """Yields a finding for each match of *rule* in a layer."""
    return (describe(layers, match) for match in layers.secrets if match.rule == rule)


def describe(layers: ImageLayers, match: SecretMatch) -> str:
    """Returns path, description and layer of a match, for a message."""
    return f"{match.path} has {match.description} ({layers.name(match.layer)})"


@pytest.mark.parametrize(
    "secret", RULES, ids=["private_key", "token", "password_file", "environment_file", "credential_in_url"]
)
def test_no_secret_in_a_layer(secret: str, layers: ImageLayers) -> None:
    """No layer has {secret}."""
    fail_if(found_in_layers(layers, RULES[secret]), fix=MOUNT)


def test_no_secret_in_the_configuration(
    configuration: Configuration, observations: Observations, layers: ImageLayers
) -> None:
    """Environment, labels, command and history of the image have no secret."""
    fail_if(
        [
            *(
                f"the variable {name} has a value"
                for name, value in configuration.environment.items()
                if value and SECRET_VARIABLE.fullmatch(name)
            ),
            *(
                f"{match.path}: {match.description}"
                for match in found_in_configuration(observations, layers)
                if match.rule != BUILD_SECRET
            ),
            *(
                f"instruction {number} of the history gives {name} a value"
                for number, instruction in enumerate(layers.history)
                if not instruction.startswith("ENV ")  # found above, as a variable
                for name in ASSIGNED.findall(instruction)
                if SECRET_VARIABLE.fullmatch(name)
            ),
        ],
        fix="pass secrets when the container starts, never in ENV, ARG or LABEL",
    )


def found_in_configuration(observations: Observations, layers: ImageLayers) -> Iterator[SecretMatch]:
    """Yields the secrets in the image's configuration and history."""
    configuration, scanner = observations.configuration, observations.scanner
    for name, value in configuration.environment.items():
        yield from scanner.scan_text(f"the variable {name}", value)
    for name, value in configuration.labels.items():
        yield from scanner.scan_text(f"the label {name}", value)
    for number, instruction in enumerate(layers.history):
        yield from scanner.scan_text(f"instruction {number} of the history", instruction)
    yield from scanner.scan_text("the command", " ".join(configuration.arguments + configuration.healthcheck))


def test_no_build_secret_is_left(
    expectations: Expectations,
    build_secrets: tuple[SecretFingerprint, ...],
    observations: Observations,
    layers: ImageLayers,
) -> None:
    """No build secret (credential, index URL, proxy) is left in a layer, the history or a label."""
    if set(build_secrets) != set(expectations.build_secrets):
        unknown = sorted({secret.name for secret in set(expectations.build_secrets) ^ set(build_secrets)})
        not_verified(f"the values of the build secrets {', '.join(unknown)} are not known here")
    fail_if(
        [
            *found_in_layers(layers, BUILD_SECRET),
            *(
                f"{match.path}: {match.description}"
                for match in found_in_configuration(observations, layers)
                if match.rule == BUILD_SECRET
            ),
        ],
        fix=MOUNT,
    )


def test_no_build_certificate_is_left(expectations: Expectations, layers: ImageLayers) -> None:
    """No certificate among the build secrets is left in a layer, in any file or form."""
    public = {
        match.fingerprint
        for match in layers.secrets
        if match.rule == "certificate" and PUBLIC_AUTHORITIES.fullmatch(match.path)
    }
    private = set(expectations.certificates_sha256) - public
    fail_if(
        (describe(layers, match) for match in layers.secrets if match.fingerprint in private),
        fix=f"{MOUNT}, and do not run update-ca-certificates",
    )


def test_no_added_certificate_authority(layers: ImageLayers) -> None:
    """No certificate authority was added to those of the system."""
    certificates = [match for match in layers.secrets if match.rule == "certificate"]
    public = {match.fingerprint for match in certificates if PUBLIC_AUTHORITIES.fullmatch(match.path)}
    fail_if(
        (
            describe(layers, match)
            for match in certificates
            if match.path.startswith("/usr/local/share/ca-certificates/")
            or (match.path == SYSTEM_BUNDLE and match.fingerprint not in public)
        ),
        fix="mount the certificate as a secret during the build, and as a file at run time if the service needs it",
    )
