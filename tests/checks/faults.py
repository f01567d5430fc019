"""The faults that tests plant in images, each with the check that must find it."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import textwrap
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from buildkit.binary.elf import parse
from buildkit.slim.placeholders.libraries import unloadable_library, warning_library
from buildkit.slim.rules.rule_sets import choose_rules
from checks.expectations import Expectations, SizeLimits
from tests.support.elf import gpu_code, make_elf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BUILD_SECRET",
    "BUILD_SECRETS",
    "CUDA",
    "DER",
    "EXPECTED",
    "FAULTS",
    "INTACT",
    "KEY",
    "PEM",
    "PLACEHOLDERS",
    "SITE",
    "TOKEN",
    "Fault",
]

SITE = "/opt/venv/lib/python@VERSION@/site-packages"


def pem(der: bytes) -> str:
    """Returns a certificate in PEM form."""
    text = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"


DER = bytes([0x30, 0x82, 0x01, 0x00]) + bytes(range(256))  # no certificate, but the checks look at these bytes only
OTHER_DER = DER[:-1] + b"\0"
PEM = pem(DER)
KEY = "-----BEGIN " + "PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n" * 4
TOKEN = "ghp_" + "0123456789abcdefghijklmnopqrstuvwxyz"
BUILD_SECRETS = {"index": "https://robot:s3cr3t-w0rd@packages.invalid/simple"}

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
    budgets=SizeLimits(unpacked_bytes=10**9, largest_layer_bytes=10**9, layers=100),
    start_seconds=240.0,  # far above the usual time: a loaded machine is not a fault
    stop_seconds=15.0,
)
BUILD_SECRET = "secrets::no_build_secret_is_left"  # noqa: S105 - the name of a check
LIBRARIES = f"{SITE}/torch_x"
CUDA = f"{LIBRARIES}/lib/libtorch_cuda.so"
# A stand-in for the library of torch: intact, and pruned of one target.
INTACT = make_elf(soname="libtorch_cuda.so", needed=["libcuda.so.1"], sections=[(".nv_fatbin", gpu_code(80, 90))])
PRUNED = make_elf(soname="libtorch_cuda.so", needed=["libcuda.so.1"], sections=[(".nv_fatbin", gpu_code(80))])
# Placeholders for removed libraries: one that does not load, and one that loads and has no symbols.
CUDNN, SOLVER = choose_rules("cudnn-engines,dense-solver")
ORIGINAL = parse(make_elf())
PLACEHOLDERS = {f"{LIBRARIES}/librefused.so": unloadable_library(ORIGINAL, "librefused.so", SOLVER)}
if shutil.which("gcc"):  # gcc compiles this one
    PLACEHOLDERS[f"{LIBRARIES}/libwarning.so"] = warning_library(ORIGINAL, "libwarning.so", CUDNN)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and the findings that the checks must report.

    Attributes:
        name: the fault in a few words.
        check: the name of the check that must fail, or of several if the fault has several findings.
        finding: a pattern that each finding of these checks must contain; by default the path of the first of `files`.
        files: path -> content, added to the image.
        instructions: instructions of the Dockerfile, which run as root after the files are added.
        has_volume: whether the image declares its cache as a volume.
        switch: turns on a fault in the stand-in's own code.
        expected: changes the expectations of the image.
        apart_from: prefixes of the names of checks that can find nothing in an image with this fault.
    """

    name: str
    check: str | tuple[str, ...]
    finding: str = ""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    instructions: str = ""
    has_volume: bool = True
    switch: str = ""
    expected: Callable[[Expectations], Expectations] = lambda expected: expected
    apart_from: tuple[str, ...] = ()

    @property
    def checks(self) -> frozenset[str]:
        """The names of all checks that must fail."""
        return frozenset({self.check} if isinstance(self.check, str) else self.check)

    @property
    def pattern(self) -> str:
        """The pattern that each finding must contain."""
        return self.finding or re.escape(next(iter(self.files)))


def package(name: str) -> str:
    """Returns an instruction that registers a Debian package."""
    entry = rf"\nPackage: {name}\nStatus: install ok installed\nVersion: 1\n"
    return f"RUN printf '{entry}' >> /var/lib/dpkg/status"


def distribution(name: str, version: str = "1.0") -> dict[str, str | bytes]:
    """Returns the metadata files of an installed distribution."""
    return {f"{SITE}/{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"}


def tool(name: str) -> str:
    """Returns the name of the check that a build tool is absent."""
    return f"absent::tool_is_absent[{name}]"


def secret(rule: str) -> str:
    """Returns the name of the check that no layer has such a secret."""
    return f"secrets::no_secret_in_a_layer[{rule}]"


def locked(name: str, version: str) -> Callable[[Expectations], Expectations]:
    """Returns a function that adds a distribution to the expected lock."""
    return lambda expected: replace(expected, locked={**expected.locked, name: version})


def budget(**limits: int) -> Callable[[Expectations], Expectations]:
    """Returns a function that replaces some of the expected budgets."""
    return lambda expected: replace(expected, budgets=replace(expected.budgets, **limits))


BUILD_TOOLS = [
    Fault("gcc by file", tool("gcc"), files={"/usr/bin/x86_64-linux-gnu-gcc-14": "#!/bin/sh\n"}),
    Fault(
        "build-essential by package",
        tool("build-essential"),
        "Debian package build-essential",
        instructions=package("build-essential"),
    ),
    Fault("uv by distribution", tool("uv"), r"distribution uv 0\.13\.9", files=distribution("uv", "0.13.9")),
    Fault(
        "renamed compiler",
        "absent::no_renamed_build_tool",
        files={"/usr/local/bin/h": make_elf(sections=[(".rodata", b"COLLECT_GCC_OPTIONS")], is_executable=True)},
    ),
]
LEFTOVERS = [
    Fault("uv cache", "absent::no_uv_cache", "/root/.cache/uv ", files={"/root/.cache/uv/CACHEDIR.TAG": "Signature"}),
    Fault("pip cache", "absent::no_pip_cache", files={"/srv/pip/0/1/2": "cc=4,\x82\xa8response"}),
    Fault("apt lists", "absent::no_apt_lists", files={"/var/lib/apt/lists/deb_trixie_main_Packages": "Package: a"}),
    Fault(
        "pytest by module",
        "absent::no_development_distribution",
        "/site-packages/_pytest ",
        files={f"{SITE}/_pytest/py.typed": ""},
    ),
    Fault(
        "hypothesis by distribution",
        "absent::no_development_distribution",
        "distribution hypothesis",
        files=distribution("hypothesis"),
    ),
    Fault("application tests", "absent::no_tests_or_scripts", "/app/tests ", files={"/app/tests/data.json": "{}"}),
    Fault(
        "distribution tests",
        "absent::no_tests_or_scripts",
        "/torch_x/tests ",
        files={f"{SITE}/torch_x/tests/test_a.pyc": "x"},
    ),
    Fault("headers", "absent::no_headers_or_static_libraries", files={f"{SITE}/torch_x/include/a.h": "int a;"}),
    Fault(
        "renamed static library",
        "absent::no_headers_or_static_libraries",
        files={f"{SITE}/torch_x/a.bin": b"!<arch>\na.o/            0           0     0     644     4         `\n"},
    ),
    Fault(
        "bare git repository",
        "absent::no_git_repository",
        "/srv/git/objects ",
        instructions="RUN mkdir -p /srv/git/objects /srv/git/refs && touch /srv/git/HEAD",
    ),
    Fault(
        "setuid file",
        "absent::no_setuid_file",
        "/usr/bin/setuid-file has mode 4755",
        instructions="RUN echo x > /usr/bin/setuid-file && chmod 4755 /usr/bin/setuid-file",
    ),
    Fault(
        "file with capabilities",
        "absent::no_setuid_file",
        "/usr/bin/capable-file has capabilities",
        instructions="RUN echo x > /usr/bin/capable-file && chmod 755 /usr/bin/capable-file && python3 -c "
        "\"import os; os.setxattr('/usr/bin/capable-file', 'security.capability', "
        f"bytes.fromhex('0100000200040000{'00' * 12}'))\"",
    ),
]
SECRETS = [
    Fault("private key", secret("private_key"), files={"/etc/ssl/private/a.pem": KEY}),
    Fault("token", secret("token"), files={"/opt/settings": f"token: {TOKEN}\n"}),
    Fault(".netrc", secret("password_file"), files={"/root/.netrc": "machine a login b password c\n"}),
    Fault(".env", secret("environment_file"), files={"/app/.env": "DEBUG=1\n"}),
    Fault(
        "pip.conf with a password",
        secret("credential_in_url"),
        files={"/etc/pip.conf": "[global]\nindex-url = https://a:bcd@mirror.invalid/simple\n"},
    ),
    Fault(
        "private key deleted later",
        (secret("private_key"), "layers::no_file_is_deleted"),
        files={"/srv/deleted.pem": KEY},
        instructions="RUN rm /srv/deleted.pem",
    ),
    Fault(
        "password in a variable",
        "secrets::no_secret_in_the_configuration",
        "the variable DATABASE_PASSWORD",
        instructions="ENV DATABASE_PASSWORD=abc",
    ),
    Fault(
        "token in the history",
        "secrets::no_secret_in_the_configuration",
        "history: a GitHub token",
        instructions=f"RUN : {TOKEN}",
    ),
    Fault(
        "password as an argument",
        "secrets::no_secret_in_the_configuration",
        "DB_PASSWORD",
        instructions="ARG DB_PASSWORD=abc\nRUN true",
    ),
    Fault(
        "build secret in a big file",
        BUILD_SECRET,
        files={"/srv/big-file": b"\0" * 1048570 + b"s3cr3t-w0rd" + bytes(range(256)) * 99},
    ),
    Fault(
        "build secret in a label",
        BUILD_SECRET,
        "the label a:|of the history: the value of the build secret",
        instructions="LABEL a=s3cr3t-w0rd",
    ),
    Fault(
        "build certificate",
        "secrets::no_build_certificate_is_left",
        files={"/srv/certificate": f"# ours\n{PEM}"},
    ),
    Fault(
        "added certificate authority",
        "secrets::no_added_certificate_authority",
        files={"/usr/local/share/ca-certificates/a.crt": pem(OTHER_DER)},
    ),
]
CONTENTS = [
    Fault(
        "psql not in the package database",
        "contents::system_packages_are_installed",
        "postgresql-client is not in the package database",
        instructions="RUN sed -i 's/^Package: postgresql-client$/Package: other/' /var/lib/dpkg/status",
    ),
    Fault(
        "world-writable file",
        "contents::no_world_writable_file",
        "/srv/writable has mode 0666",
        instructions="RUN touch /srv/writable && chmod 666 /srv/writable",
    ),
    Fault(
        "code owned by the service's user",
        "contents::code_is_read_only",
        "/app/owned belongs to 1000",
        instructions="RUN touch /app/owned && chown 1000 /app/owned",
    ),
    Fault("no bytecode", "contents::sources_have_bytecode", files={"/app/service/extra.py": "A = 1\n"}),
    Fault(
        "bytecode of another Python",
        "contents::sources_have_bytecode",
        files={"/app/b.py": "A = 1\n", "/app/__pycache__/b.cpython-@TAG@.pyc": b"\0\0\r\n" + bytes(40)},
    ),
    Fault(
        "symbols",
        "contents::shared_objects_are_stripped",
        files={f"{LIBRARIES}/libsymbols.so": make_elf(soname="libsymbols.so", sections=[(".symtab", bytes(24))])},
    ),
    Fault(
        "debug information",
        "contents::shared_objects_are_stripped",
        files={f"{LIBRARIES}/libdebug.so": make_elf(soname="libdebug.so", sections=[(".debug_info", bytes(24))])},
    ),
    Fault(
        "truncated library",
        "contents::shared_objects_are_intact",
        files={f"{LIBRARIES}/libcut.so": make_elf(soname="libcut.so")[:100]},
    ),
    Fault(
        "missing library",
        "contents::needed_libraries_are_found",
        files={f"{LIBRARIES}/libneedy.so": make_elf(needed=["libnowhere.so.1"])},
    ),
    Fault(
        "distribution outside the lock",
        "contents::distributions_equal_the_lock",
        "leftpad is 1.0",
        files=distribution("leftpad"),
    ),
    Fault(
        "locked distribution missing",
        "contents::locked_distributions_are_installed",
        "rightpad 1.0",
        expected=locked("rightpad", "1.0"),
    ),
    Fault(
        "distribution of another version",
        "contents::distributions_equal_the_lock",
        "transformers is 5.20.0",
        expected=locked("transformers", "5.19.0"),
    ),
    Fault(
        "distribution installed twice",
        "contents::no_distribution_is_installed_twice",
        "^alembic: ",
        files=distribution("Alembic", "1.18.0"),
    ),
    Fault(
        "cache that is not writable",
        "contents::cache_is_writable",
        "/var/cache/truthgraph belongs to 0:0",
        instructions="RUN rmdir /var/cache/truthgraph && mkdir -m 755 /var/cache/truthgraph",
    ),
]
LAYERS = [
    Fault(
        "change of owner",
        "layers::no_metadata_only_copy",
        "/app/service/chowned.json",
        instructions="RUN chown 7 /app/service/chowned.json",
    ),
    Fault(
        "overwritten file",
        "layers::no_file_is_overwritten",
        "/app/service/overwritten.json",
        instructions="RUN echo 2 > /app/service/overwritten.json",
    ),
    Fault(
        "deleted file",
        "layers::no_file_is_deleted",
        "/app/service/deleted.json",
        instructions="RUN rm /app/service/deleted.json",
    ),
    Fault(
        "duplicate file",
        "layers::no_duplicate_files",
        "/srv/copy-1, /srv/copy-2",
        instructions="RUN head -c 1100000 /dev/urandom > /srv/copy-1 && cp /srv/copy-1 /srv/copy-2",
    ),
    Fault("image too large", "layers::size_is_within_budget", "budget is 1$", expected=budget(unpacked_bytes=1)),
    Fault(
        "layer too large",
        "layers::each_layer_is_within_budget",
        "budget is 1000000$",
        expected=budget(largest_layer_bytes=10**6),
    ),
    Fault("too many layers", "layers::layer_count_is_within_budget", "budget is 1$", expected=budget(layers=1)),
]
CONFIGURATION = [
    Fault(
        "root",
        ("configuration::user_is_numeric_and_not_root", "application::service_runs_as_its_user"),
        "USER is '0:0'|user is 0",
        instructions="USER 0:0",
    ),
    Fault(
        "user by name",
        "configuration::user_is_numeric_and_not_root",
        "USER is 'appuser'",
        instructions="RUN echo 'appuser:x:1000:1000::/:/bin/sh' >> /etc/passwd\nUSER appuser",
    ),
    Fault(
        "shell around the command",
        "configuration::command_is_in_exec_form",
        "exec python -m service serve",
        instructions="CMD exec python -m service serve",
    ),
    Fault(
        "reload",
        "configuration::no_reload",
        "--reload",
        instructions='CMD ["python", "-m", "service", "serve", "--reload"]',
    ),
    Fault(
        "wrong stop signal",
        "configuration::stop_signal_is_set",
        "SIGINT",
        instructions="STOPSIGNAL SIGINT",
        apart_from=("application::stop_signal",),
    ),
    Fault("wrong port", "configuration::port_is_exposed", "9000/tcp", instructions="EXPOSE 9000"),
    Fault("wrong working directory", "configuration::working_directory_is_set", "/srv", instructions="WORKDIR /srv"),
    Fault(
        "health check that never fails",
        "configuration::healthcheck_requests_the_service",
        "HEALTHCHECK is",
        instructions='HEALTHCHECK CMD ["curl", "http://127.0.0.1:8000/health"]',
        apart_from=("application::healthcheck_passes",),
    ),
    Fault(
        "no volume",
        ("configuration::cache_is_a_volume", "contents::cache_is_writable"),
        r"VOLUME is \[\]|/var/cache/truthgraph belongs to",
        has_volume=False,
    ),
    Fault(
        "empty label",
        "configuration::labels_are_set",
        "image.created is missing or empty",
        instructions='LABEL org.opencontainers.image.created=""',
    ),
    Fault(
        "wrong label",
        "configuration::labels_are_set",
        "image.revision is 'f00'",
        instructions='LABEL org.opencontainers.image.revision="f00"',
    ),
    Fault(
        "another Python first on PATH",
        "configuration::python_is_of_the_virtual_environment",
        "its prefix is /usr",
        instructions="RUN ln -s $(readlink -f $(command -v python3)) /usr/local/bin/python\n"
        "RUN ln -s /opt/venv/bin/alembic /opt/venv/bin/uvicorn /usr/local/bin/\n"
        f"ENV PATH=/usr/local/bin:/usr/bin:/bin PYTHONPATH=/app:{SITE}",
        apart_from=("models::imported_modules_have_bytecode",),
    ),
]
APPLICATION = [
    Fault(
        "service does not start",
        "application::service_starts",
        "no answer on port 8000",
        switch="start",
        apart_from=("application::", "configuration::command", "configuration::no_reload"),
    ),
    Fault(
        "health fails",
        ("application::health_answers", "application::healthcheck_passes"),
        "/health answered 500|exit code 22",
        switch="health",
    ),
    Fault(
        "health check without its program",
        "application::healthcheck_passes",
        "/opt/curl",
        instructions='HEALTHCHECK CMD ["/opt/curl", "--fail", "http://127.0.0.1:8000/health"]',
    ),
    Fault("liveness fails", "application::liveness_answers", "/livez answered 503", switch="livez"),
    Fault("readiness without reasons", "application::readiness_gives_reasons", "/readyz answered 503", switch="readyz"),
    Fault(
        "service crashes",
        "application::service_keeps_running",
        "exit code 1;",
        switch="crash",
        apart_from=("application::healthcheck", "application::stop_signal", "application::service_runs_as_its_user"),
    ),
    Fault("no metrics", "application::metrics_answer", "/metrics answered", switch="metrics"),
    Fault(
        "undeclared route",
        "application::routes_match_the_route_table",
        "GET /debug is registered|`python -m service routes`",
        switch="routes",
    ),
    Fault(
        "undescribed route",
        "application::openapi_matches_the_route_table",
        "GET /metrics is declared but not described",
        switch="openapi",
    ),
    Fault(
        "dropped request",
        "application::stop_signal_drains_requests",
        "connection ended without an answer",
        switch="drain",
        apart_from=("application::stop_signal_ends",),
    ),
    Fault(
        "stop signal ignored",
        "application::stop_signal_ends_the_service",
        "exit code 137",
        switch="stop",
        expected=lambda expected: replace(expected, stop_seconds=4.0),  # the engine kills it only after this time
    ),
    Fault("no console script", "application::console_script_runs[alembic]", "alembic --version", switch="script"),
    Fault("no migrations", "application::migrations_render_as_sql", "script_location", switch="migration"),
]
MODELS = [
    *(
        Fault(
            f"{name} does not import",
            f"models::module_imports[{name}]",
            f"import {name}",
            switch=f"import {name}",
            apart_from=("models::imported", "models::torch", "models::embedding"),
        )
        for name in ("torch", "transformers", "sentence_transformers")
    ),
    Fault(
        "module compiled at each start",
        "models::imported_modules_have_bytecode",
        "/cold.py",
        files={f"{SITE}/cold.pth": "import cold\n", f"{SITE}/cold.py": "A = 1\n"},
        expected=lambda expected: replace(expected, uncompiled=("cold.py",)),
    ),
    Fault("wrong torch version", "models::torch_version_equals_the_lock", "torch is 2.12.0", switch="torch version"),
    Fault("CPU build of torch", "models::torch_is_a_cuda_build", "CPU build", switch="torch build"),
    Fault(
        "torch without a target",
        "models::torch_has_code_for_the_targets",
        "sm_90 is missing",
        switch="torch targets",
    ),
    Fault(
        "library pruned of a target",
        "models::libraries_hold_code_for_the_targets",
        "no code for sm_90",
        files={CUDA: PRUNED},
    ),
    Fault(
        "two copies of CUDA",
        "models::one_copy_of_cuda",
        "libcudart is installed 2 times",
        files={
            f"{SITE}/nvidia/a/libcudart.so.12": make_elf(soname="libcudart.so.12"),
            f"{SITE}/nvidia/b/libcudart.so.13": make_elf(soname="libcudart.so.13"),
        },
    ),
    Fault(
        "library that does not load",
        "models::libraries_load",
        files={f"{LIBRARIES}/libundefined.so": make_elf(undefined=["nowhere"])},
    ),
    Fault(
        "library that needs a placeholder",
        "models::libraries_load",
        files={f"{LIBRARIES}/libdependent.so": make_elf(needed=["librefused.so"], runpath="$ORIGIN")},
    ),
    Fault("wrong embedding", "models::embedding_is_correct", "a component differs", switch="embedding"),
    Fault(
        "wrong embedding by command",
        "models::embed_command_is_correct",
        "a component differs",
        switch="embed command",
    ),
]
FAULTS = (*BUILD_TOOLS, *LEFTOVERS, *SECRETS, *CONTENTS, *LAYERS, *CONFIGURATION, *APPLICATION, *MODELS)
