"""The faults that are planted, each in an image of its own that is otherwise without fault."""

from __future__ import annotations

import base64
import hashlib
import textwrap
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from buildkit.slim.placeholders.libraries import library_sign
from buildkit.slim.rules.rule_sets import choose_rules
from checks.expectations import Expectations, SizeLimits
from tests.support.elf_facts import fatbin, make_elf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["DER", "EXPECTED", "FAULTS", "HANDED_IN", "INERT", "SIGNS", "Fault"]

SITE = "/opt/venv/lib/python@VERSION@/site-packages"
DER = bytes([0x30, 0x82, 0x01, 0x00]) + bytes(range(256))  # has the form of a certificate, which is all that counts
PEM = (
    "-----BEGIN CERTIFICATE-----\n"
    + "\n".join(textwrap.wrap(base64.b64encode(DER).decode(), 64))
    + "\n-----END CERTIFICATE-----\n"
)
KEY = "-----BEGIN " + "PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n" * 4
TOKEN = "ghp_" + "0123456789abcdefghijklmnopqrstuvwxyz"
HANDED_IN = {"index": "https://robot:s3cr3t-w0rd@packages.invalid/simple"}

EXPECTED = Expectations(
    target="stand-in",
    certificates_sha256=(hashlib.sha256(DER).hexdigest(),),
    locked={
        "torch": "2.13.0",
        "transformers": "5.20.0",
        "sentence-transformers": "6.1.0",
        "alembic": "1.18.0",
        "uvicorn": "0.40.0",
    },
    development_only={"pytest": ("pytest", "_pytest"), "hypothesis": ("hypothesis",)},
    cuda_targets=("sm_80", "sm_90"),
    labels={"org.opencontainers.image.revision": "0123abc", "org.opencontainers.image.created": None},
    base_paths=("/var/lib/dpkg/", "/etc/passwd"),
    budgets=SizeLimits(unpacked_bytes=10**9, largest_layer_bytes=10**9, layers=40),
    stop_seconds=5.0,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        name: what is wrong, in words.
        check: the name of the one check that must fail; several, where one cause is two findings by its nature.
        instructions: of the Dockerfile, run as root on top of the image without fault.
        files: path -> content, copied on top of it first.
        parent: the stage that they go on top of.
        switch: turns on a fault of the stand-in's own code.
        expected: what to expect instead of `EXPECTED`.
    """

    name: str
    check: str | tuple[str, ...]
    instructions: str = ""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    parent: str = "parent"
    switch: str = ""
    expected: Callable[[Expectations], Expectations] = lambda expected: expected

    @property
    def is_planted(self) -> bool:
        """Whether the image differs from the one without fault, rather than what is expected of it."""
        return bool(self.files or self.instructions or self.switch or self.parent != "parent")

    @property
    def checks(self) -> set[str]:
        """The names of all checks that must fail."""
        return {self.check} if isinstance(self.check, str) else set(self.check)


def package(name: str) -> str:
    """An instruction that registers a Debian package."""
    entry = rf"\nPackage: {name}\nStatus: install ok installed\nVersion: 1\n"
    return f"RUN printf '{entry}' >> /var/lib/dpkg/status"


def distribution(name: str, version: str = "1.0") -> dict[str, str | bytes]:
    """The metadata of an installed distribution."""
    return {f"{SITE}/{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"}


def tool(name: str) -> str:
    """The check that *name* is absent."""
    return f"absent::tool_is_absent[{name}]"


def secret(rule: str) -> str:
    """The check that no layer has such a secret."""
    return f"secrets::no_secret_in_a_layer[{rule}]"


def budget(**limits: int) -> Callable[[Expectations], Expectations]:
    """Other budgets than `EXPECTED` has."""
    return lambda expected: replace(expected, budgets=replace(expected.budgets, **limits))


BUILD_TOOLS = [
    Fault("gcc by file", tool("gcc"), files={"/usr/bin/x86_64-linux-gnu-gcc-14": "#!/bin/sh\n"}),
    Fault("build-essential by package", tool("build-essential"), package("build-essential")),
    Fault("uv by distribution", tool("uv"), files=distribution("uv", "0.13.9")),
    Fault(
        "a compiler under another name",
        "absent::no_build_tool_hides_under_another_name",
        files={"/usr/local/bin/h": make_elf(sections=[(".rodata", b"COLLECT_GCC_OPTIONS")], is_executable=True)},
    ),
]
LEFTOVERS = [
    Fault("uv's cache", "absent::no_uv_cache", files={"/root/.cache/uv/CACHEDIR.TAG": "Signature"}),
    Fault("pip's cache elsewhere", "absent::no_pip_cache", files={"/srv/c/0/1/2": "cc=4,\x82\xa8response"}),
    Fault(
        "apt's lists", "absent::no_apt_lists", files={"/var/lib/apt/lists/deb_trixie_main_Packages": "DebianPackage: a"}
    ),
    Fault("pytest by module", "absent::no_development_distribution", files={f"{SITE}/_pytest/py.typed": ""}),
    Fault("another one of the dev group", "absent::no_development_distribution", files=distribution("hypothesis")),
    Fault("tests of the application", "absent::no_tests_or_scripts", files={"/app/tests/data.json": "{}"}),
    Fault("tests of a distribution", "absent::no_tests_or_scripts", files={f"{SITE}/torch_x/tests/test_a.pyc": "x"}),
    Fault("headers", "absent::no_headers_or_static_libraries", files={f"{SITE}/torch_x/include/a.h": "int a;"}),
    Fault(
        "a static library under another name",
        "absent::no_headers_or_static_libraries",
        files={f"{SITE}/torch_x/a.bin": b"!<arch>\na.o/            0           0     0     644     4         `\n"},
    ),
    Fault(
        "a bare git repository",
        "absent::no_git_repository",
        "RUN mkdir -p /srv/a/objects /srv/a/refs && touch /srv/a/HEAD",
    ),
    Fault("a setuid file", "absent::no_setuid_file", "RUN echo x > /usr/bin/a && chmod 4755 /usr/bin/a"),
    Fault(
        "a file with capabilities",
        "absent::no_setuid_file",
        'RUN echo x > /usr/bin/a && chmod 755 /usr/bin/a && python3 -c "import os; os.setxattr('
        f"'/usr/bin/a', 'security.capability', bytes.fromhex('0100000200040000{'00' * 12}'))\"",
    ),
]
SECRETS = [
    Fault("a private key", secret("private_key"), files={"/etc/ssl/private/a.pem": KEY}),
    Fault("a token", secret("token"), files={"/opt/settings": f"token: {TOKEN}\n"}),
    Fault("a .netrc", secret("password_file"), files={"/root/.netrc": "machine a login b password c\n"}),
    Fault("an .env file", secret("environment_file"), files={"/app/.env": "DEBUG=1\n"}),
    Fault(
        "a pip.conf with a password",
        secret("credential_in_address"),
        files={"/etc/pip.conf": "[global]\nindex-url = https://a:bcd@mirror.invalid/simple\n"},
    ),
    Fault(
        "a private key that a later layer deletes",
        (secret("private_key"), "layers::no_file_is_deleted"),
        "RUN rm /srv/a.pem",
        files={"/srv/a.pem": KEY},
    ),
    Fault("a password in a variable", "secrets::no_secret_in_the_configuration", "ENV DATABASE_PASSWORD=abc"),
    Fault("a token in the history", "secrets::no_secret_in_the_configuration", f"RUN : {TOKEN}"),
    Fault("a password as an argument", "secrets::no_secret_in_the_configuration", "ARG DB_PASSWORD=abc\nRUN true"),
    Fault(
        "a password handed in, in a big file",
        "secrets::nothing_handed_in_is_left",
        files={"/srv/a": b"\0" * 1048570 + b"s3cr3t-w0rd" + bytes(range(256)) * 99},
    ),
    Fault("a password handed in, in a label", "secrets::nothing_handed_in_is_left", "LABEL a=s3cr3t-w0rd"),
    Fault("a certificate handed in", "secrets::no_certificate_handed_in_is_left", files={"/srv/a": f"# ours\n{PEM}"}),
    Fault(
        "an added authority",
        "secrets::no_authority_was_added",
        files={"/usr/local/share/ca-certificates/a.crt": PEM},
        expected=lambda expected: replace(expected, certificates_sha256=()),
    ),
]
LIBRARY = f"{SITE}/torch_x/liba.so"
# What a slim leaves in the place of a library: one that the loader refuses, and one that loads and has no symbol.
SIGNS = {
    f"{SITE}/torch_x/lib{rule.sign}.so": library_sign(make_elf(), f"lib{rule.sign}.so", rule)
    for rule in choose_rules("dense-solver,cudnn-engines")
}
CONTENTS = [
    Fault(
        "psql missing from the package database",
        "contents::system_packages_are_installed",
        "RUN sed -i 's/^DebianPackage: postgresql-client$/DebianPackage: other/' /var/lib/dpkg/status",
    ),
    Fault("a file for everyone to write", "contents::no_world_writable_file", "RUN touch /srv/a && chmod 666 /srv/a"),
    Fault("code that the service can change", "contents::code_is_read_only", "RUN touch /app/a && chown 1000 /app/a"),
    Fault("no bytecode", "contents::bytecode_is_there", files={"/app/service/extra.py": "A = 1\n"}),
    Fault(
        "bytecode of another Python",
        "contents::bytecode_is_there",
        files={"/app/b.py": "A = 1\n", "/app/__pycache__/b.cpython-@TAG@.pyc": b"\0\0\r\n" + bytes(40)},
    ),
    Fault(
        "symbols",
        "contents::shared_objects_are_stripped",
        files={LIBRARY: make_elf(soname="liba.so", sections=[(".symtab", bytes(24))])},
    ),
    Fault(
        "debug information",
        "contents::shared_objects_are_stripped",
        files={LIBRARY: make_elf(soname="liba.so", sections=[(".debug_info", bytes(24))])},
    ),
    Fault("half a library", "contents::shared_objects_are_whole", files={LIBRARY: make_elf(soname="liba.so")[:100]}),
    Fault(
        "a missing library", "contents::needed_libraries_resolve", files={LIBRARY: make_elf(needed=["libnowhere.so.1"])}
    ),
    Fault("a distribution that is not locked", "contents::distributions_equal_the_lock", files=distribution("leftpad")),
    Fault(
        "a locked distribution that is missing",
        "contents::the_lock_is_installed",
        expected=lambda expected: replace(expected, locked={**expected.locked, "leftpad": "1.0"}),
    ),
    Fault(
        "a distribution of another version",
        "contents::distributions_equal_the_lock",
        expected=lambda expected: replace(expected, locked={**expected.locked, "transformers": "5.19.0"}),
    ),
    Fault("a distribution twice", "contents::each_distribution_is_there_once", files=distribution("Alembic", "1.18.0")),
    Fault(
        "a cache that is not writable",
        "contents::cache_is_writable",
        "RUN rmdir /var/cache/truthgraph && mkdir -m 755 /var/cache/truthgraph",
    ),
]
LAYERS = [
    Fault("a change of owner", "layers::no_file_is_stored_again", "RUN chown 7 /app/service/data.json"),
    Fault("an overwritten file", "layers::no_file_is_overwritten", "RUN echo 2 > /app/service/data.json"),
    Fault("a deleted file", "layers::no_file_is_deleted", "RUN rm /app/service/data.json"),
    Fault("two copies", "layers::no_copies", "RUN head -c 1100000 /dev/urandom > /srv/a && cp /srv/a /srv/b"),
    Fault(
        "too large",
        "layers::size_is_within_budget",
        expected=lambda e: replace(e, budgets=SizeLimits(unpacked_bytes=1)),
    ),
    Fault(
        "a layer too large",
        "layers::each_layer_is_within_budget",
        expected=budget(largest_layer_bytes=10**6),
    ),
    Fault(
        "too many layers",
        "layers::number_of_layers_is_within_budget",
        expected=budget(layers=1),
    ),
]
CONFIGURATION = [
    Fault(
        "root",
        ("configuration::user_is_numeric_and_not_root", "application::service_runs_as_its_user"),
        "USER 0:0",
    ),
    Fault(
        "a user by name",
        "configuration::user_is_numeric_and_not_root",
        "RUN echo 'appuser:x:1000:1000::/:/bin/sh' >> /etc/passwd\nUSER appuser",
    ),
    Fault("a shell around the command", "configuration::command_is_in_exec_form", "CMD exec python -m service serve"),
    Fault("reload", "configuration::no_reload", 'CMD ["python", "-m", "service", "serve", "--reload"]'),
    Fault("another stop signal", "configuration::stop_signal", "STOPSIGNAL SIGINT"),
    Fault("another port", "configuration::port_is_exposed", "EXPOSE 9000"),
    Fault("another working folder", "configuration::working_folder", "WORKDIR /srv"),
    Fault(
        "a health check that never fails",
        "configuration::healthcheck_asks_the_service",
        'HEALTHCHECK CMD ["curl", "http://127.0.0.1:8000/health"]',
    ),
    Fault("no volume", ("configuration::cache_is_declared", "contents::cache_is_writable"), parent="undeclared"),
    Fault("an empty label", "configuration::labels_are_set", 'LABEL org.opencontainers.image.created=""'),
    Fault("a wrong label", "configuration::labels_are_set", 'LABEL org.opencontainers.image.revision="f00"'),
    Fault(
        "another Python first",
        "configuration::python_is_the_environments",
        f"RUN ln -s $(readlink -f $(command -v python3)) /usr/local/bin/python\n"
        "RUN ln -s /opt/venv/bin/alembic /opt/venv/bin/uvicorn /usr/local/bin/\n"
        f"ENV PATH=/usr/local/bin:/usr/bin:/bin PYTHONPATH=/app:{SITE}",
    ),
]
APPLICATION = [
    Fault("no start", "application::application_starts", switch="start"),
    Fault("no health", ("application::health_answers", "application::healthcheck_passes"), switch="health"),
    Fault(
        "a health check of a missing program",
        "application::healthcheck_passes",
        'HEALTHCHECK CMD ["/opt/curl", "--fail", "http://127.0.0.1:8000/health"]',
    ),
    Fault("no liveness", "application::liveness_answers", switch="livez"),
    Fault("no reasons", "application::readiness_says_why_not", switch="readyz"),
    Fault("a crash loop", "application::it_keeps_running", switch="crash"),
    Fault("no metrics", "application::metrics_answer", switch="metrics"),
    Fault("an undeclared route", "application::routes_are_the_declared_ones", switch="routes"),
    Fault("an undescribed route", "application::openapi_agrees", switch="openapi"),
    Fault("a request dropped", "application::stop_signal_drains", switch="drain"),
    Fault("a deaf service", "application::stop_signal_ends_it", switch="stop"),
    Fault("no console script", "application::console_script_runs[alembic]", switch="console script"),
    Fault("no migrations", "application::migrations_are_written_as_sql", switch="migration"),
]
MODELS = [
    *(
        Fault(f"{name} does not import", f"models::module_imports[{name}]", switch=f"{name} import")
        for name in ("torch", "transformers", "sentence_transformers")
    ),
    Fault(
        "a module that each start compiles",
        "models::imported_modules_have_bytecode",
        files={f"{SITE}/cold.pth": "import cold\n", f"{SITE}/cold.py": "A = 1\n"},
        expected=lambda expected: replace(expected, uncompiled=("cold.py",)),
    ),
    Fault("another version of torch", "models::torch_version_equals_the_lock", switch="torch version"),
    Fault("a CPU build", "models::torch_is_a_cuda_build", switch="torch build"),
    Fault("a target that torch was not built for", "models::torch_has_code_for_the_targets", switch="torch targets"),
    Fault("a target pruned away", "models::libraries_hold_code_for_the_targets", parent="pruned"),
    Fault(
        "two copies of CUDA",
        "models::one_copy_of_cuda",
        files={
            f"{SITE}/nvidia/a/libcudart.so.12": make_elf(soname="libcudart.so.12"),
            f"{SITE}/nvidia/b/libcudart.so.13": make_elf(soname="libcudart.so.13"),
        },
    ),
    Fault("a library that does not load", "models::libraries_load", files={LIBRARY: make_elf(undefined=["nowhere"])}),
    Fault(
        "a sign in the place of a library that is needed",
        "models::libraries_load",
        files={LIBRARY: make_elf(needed=["librefused.so"], runpath="$ORIGIN")},
    ),
    Fault("a wrong embedding", "models::embedding_is_right", switch="embedding"),
    Fault("a wrong embedding by command", "models::embed_command_agrees", switch="embed command"),
]
INERT = (*BUILD_TOOLS, *LEFTOVERS, *SECRETS, *CONTENTS, *LAYERS)  # the image runs like the one without fault
FAULTS = (*INERT, *CONFIGURATION, *APPLICATION, *MODELS)

# What torch's own library looks like to the checks: whole, and pruned of one target.
CUDA = f"{SITE}/torch_x/lib/libtorch_cuda.so"
WHOLE = make_elf(soname="libtorch_cuda.so", needed=["libcuda.so.1"], sections=[(".nv_fatbin", fatbin(80, 90))])
PRUNED = make_elf(soname="libtorch_cuda.so", needed=["libcuda.so.1"], sections=[(".nv_fatbin", fatbin(80))])
