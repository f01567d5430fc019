from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from buildkit.build.secrets import BuildSecrets
from buildkit.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_empty_environment_has_no_secrets() -> None:
    secrets = BuildSecrets.of({})

    assert (secrets.certificates, secrets.netrc) == (None, None)
    assert secrets.proxies == {}


def test_first_named_bundle_holds_the_certificates(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-")

    secrets = BuildSecrets.of({"SSL_CERT_FILE": str(bundle), "PIP_CERT": "/elsewhere"})

    assert [f"id=ca,src={bundle}"] == secrets.buildx_secrets(tmp_path)[:1]


def test_missing_bundle_is_refused_with_its_variable() -> None:
    with pytest.raises(UsageError, match=r"PIP_CERT = '/nowhere\.pem'"):
        BuildSecrets.of({"PIP_CERT": "/nowhere.pem"})


def test_index_of_pip_is_used_by_uv(tmp_path: Path) -> None:
    secrets = BuildSecrets.of({"PIP_INDEX_URL": "https://mirror.test/simple", "HOME": str(tmp_path)})

    assert secrets.index["UV_DEFAULT_INDEX"] == "https://mirror.test/simple"


def test_index_in_pip_conf_is_found(tmp_path: Path) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip" / "pip.conf").write_text("[global]\nindex-url = https://mirror.test/100%/simple\n")

    secrets = BuildSecrets.of({"HOME": str(tmp_path)})

    assert secrets.index["PIP_INDEX_URL"] == "https://mirror.test/100%/simple"


def test_local_folder_is_no_index_in_a_container(tmp_path: Path) -> None:
    environment = {"PIP_EXTRA_INDEX_URL": "file:///srv/wheels https://extra.test/simple", "HOME": str(tmp_path)}

    assert BuildSecrets.of(environment).index["PIP_EXTRA_INDEX_URL"] == "https://extra.test/simple"


def test_index_file_is_readable_by_this_user_only(tmp_path: Path) -> None:
    secrets = BuildSecrets.of({"UV_INDEX_URL": "https://anna:s3cr3t-word@mirror.test/simple", "HOME": str(tmp_path)})

    secrets.buildx_secrets(tmp_path)

    assert stat.S_IMODE((tmp_path / "index").stat().st_mode) == 0o600
    assert "s3cr3t-word" in (tmp_path / "index").read_text()


def test_plain_values_hold_each_secret_once(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine mirror.test login anna password word-in-netrc\n")
    secrets = BuildSecrets.of(
        {
            "UV_INDEX_URL": "https://anna:s3cr3t-word@mirror.test/simple",
            "https_proxy": "http://user42:pr0xy-word@proxy.test:3128",
            "no_proxy": "localhost",
            "HOME": str(tmp_path),
        }
    )

    values = set(secrets.plain_values().values())

    assert {"s3cr3t-word", "pr0xy-word", "word-in-netrc", "user42"} <= values
    assert "localhost" not in values


def test_proxies_keep_their_case() -> None:
    assert BuildSecrets.of({"https_proxy": "http://proxy.test"}).proxies == {"https_proxy": "http://proxy.test"}
