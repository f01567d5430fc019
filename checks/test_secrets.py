"""What must not be readable in any layer, however many later ones hide it, nor in the image's configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from checks.verdicts import fail_if, not_verified

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checks.evidence import Observations
    from checks.expectations import Expectations, SecretFingerprint
    from checks.facts import Configuration
    from checks.layers import ImageLayers
    from checks.secrets import Trace

SECRET_VARIABLE = re.compile(r"(?i).*(password|passwd|secret|token|api_?key|access_?key|private_?key|credential).*")
ASSIGNED = re.compile(r"""(?<![\w-])([A-Za-z_][A-Za-z0-9_]*)=(?!["']?\$)(?!["']*(?:\s|\Z))""")
MOUNT = "hand it to the one instruction that needs it: RUN --mount=type=secret,id=NAME"
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PUBLIC_AUTHORITIES = re.compile(r"/usr/share/ca-certificates/mozilla/.*|.*/(certifi|pip/_vendor/certifi)/cacert\.pem")


def seen(layers: ImageLayers, rule: str) -> Iterator[str]:
    """Each find of *rule* with its layer."""
    for trace in layers.traces:
        if trace.rule == rule:
            yield described(layers, trace)


def described(layers: ImageLayers, trace: Trace) -> str:
    """Where a find is."""
    return f"{trace.path} holds {trace.what} ({layers.name(trace.layer)})"


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ("private key", "a private key"),
        ("token", "an access token"),
        ("password file", "a file of passwords (.netrc, .pypirc, .pgpass, credentials of tools)"),
        ("environment file", "an .env file with settings"),
        ("credential in an address", "a configuration file with a user and password in an address"),
    ],
    ids=["private_key", "token", "password_file", "environment_file", "credential_in_address"],
)
def test_no_secret_in_a_layer(rule: str, what: str, layers: ImageLayers) -> None:
    """No layer holds {what}."""
    assert what
    fail_if(seen(layers, rule), fix=MOUNT)


def test_no_secret_in_the_configuration(
    configuration: Configuration, evidence: Observations, layers: ImageLayers
) -> None:
    """No secret is in the environment, labels, command or history of the image."""
    fail_if(
        [
            *(
                f"the variable {name} has a value"
                for name, value in configuration.environment.items()
                if value and SECRET_VARIABLE.fullmatch(name)
            ),
            *(f"{trace.path}: {trace.what}" for trace in configured(evidence, layers) if trace.rule != "handed-in"),
            *(
                f"instruction {number} of the history gives {name} a value"
                for number, instruction in enumerate(layers.history)
                if not instruction.startswith("ENV ")  # a finding of its own, as a variable
                for name in ASSIGNED.findall(instruction)
                if SECRET_VARIABLE.fullmatch(name)
            ),
        ],
        fix="give secrets when the container is started, never by ENV, ARG or LABEL",
    )


def configured(evidence: Observations, layers: ImageLayers) -> Iterator[Trace]:
    """What the image's configuration betrays."""
    configuration = evidence.configuration
    for name, value in configuration.environment.items():
        yield from evidence.traces.of_text(f"the variable {name}", value)
    for name, value in configuration.labels.items():
        yield from evidence.traces.of_text(f"the label {name}", value)
    for number, instruction in enumerate(layers.history):
        yield from evidence.traces.of_text(f"instruction {number} of the history", instruction)
    yield from evidence.traces.of_text("the command", " ".join(configuration.arguments + configuration.healthcheck))


def test_nothing_handed_in_is_left(
    expectations: Expectations, handed_in: tuple[SecretFingerprint, ...], evidence: Observations, layers: ImageLayers
) -> None:
    """No credential, index address or proxy that was handed to the build is in a layer, the history or a label."""
    if set(handed_in) != set(expectations.handed_in):
        missing = sorted({item.name for item in set(expectations.handed_in) ^ set(handed_in)})
        not_verified(f"the values of {', '.join(missing)} that the build was given are not known here")
    fail_if(
        [
            *seen(layers, "handed-in"),
            *(f"{trace.path}: {trace.what}" for trace in configured(evidence, layers) if trace.rule == "handed-in"),
        ],
        fix=MOUNT,
    )


def test_no_certificate_handed_in_is_left(expectations: Expectations, layers: ImageLayers) -> None:
    """No certificate that was handed to the build is in a layer, in whatever file or form."""
    public = {
        trace.fingerprint
        for trace in layers.traces
        if trace.rule == "certificate" and PUBLIC_AUTHORITIES.fullmatch(trace.path)
    }
    private = set(expectations.certificates_sha256) - public
    fail_if(
        (described(layers, trace) for trace in layers.traces if trace.fingerprint in private),
        fix=f"{MOUNT}, and leave the image's own trust store as its packages make it",
    )


def test_no_authority_was_added(layers: ImageLayers) -> None:
    """No certificate authority was added to the system's own."""
    certificates = [trace for trace in layers.traces if trace.rule == "certificate"]
    public = {trace.fingerprint for trace in certificates if PUBLIC_AUTHORITIES.fullmatch(trace.path)}
    fail_if(
        (
            described(layers, trace)
            for trace in certificates
            if trace.path.startswith("/usr/local/share/ca-certificates/")
            or (trace.path == SYSTEM_BUNDLE and trace.fingerprint not in public)
        ),
        fix="mount the certificate as a secret during the build, and at run time where the operator needs it",
    )
