from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from buildkit.build.secrets import BuildSecrets
from buildkit.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_in_the_environment_means_nothing_handed_in() -> None:
    handed_in = BuildSecrets.of({})

    assert (handed_in.certificates, handed_in.netrc) == (None, None)
    assert handed_in.proxies == {}


def test_the_first_bundle_named_is_the_certificates(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-")

    handed_in = BuildSecrets.of({"SSL_CERT_FILE": str(bundle), "PIP_CERT": "/elsewhere"})

    assert [f"id=ca,src={bundle}"] == handed_in.as_secrets(tmp_path)[:1]


def test_a_bundle_that_is_not_there_is_refused_by_its_variable() -> None:
    with pytest.raises(UsageError, match=r"PIP_CERT = '/nowhere\.pem'"):
        BuildSecrets.of({"PIP_CERT": "/nowhere.pem"})


def test_an_index_given_to_pip_is_used_by_uv_too(tmp_path: Path) -> None:
    handed_in = BuildSecrets.of({"PIP_INDEX_URL": "https://mirror.test/simple", "HOME": str(tmp_path)})

    assert handed_in.index["UV_DEFAULT_INDEX"] == "https://mirror.test/simple"


def test_an_index_in_pips_own_file_is_found(tmp_path: Path) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip" / "pip.conf").write_text("[global]\nindex-url = https://mirror.test/100%/simple\n")

    handed_in = BuildSecrets.of({"HOME": str(tmp_path)})

    assert handed_in.index["PIP_INDEX_URL"] == "https://mirror.test/100%/simple"


def test_folders_of_this_machine_are_not_an_index_for_a_container(tmp_path: Path) -> None:
    environment = {"PIP_EXTRA_INDEX_URL": "file:///srv/wheels https://extra.test/simple", "HOME": str(tmp_path)}

    assert BuildSecrets.of(environment).index["PIP_EXTRA_INDEX_URL"] == "https://extra.test/simple"


def test_credentials_are_written_for_this_user_only(tmp_path: Path) -> None:
    handed_in = BuildSecrets.of({"UV_INDEX_URL": "https://anna:s3cr3t-word@mirror.test/simple", "HOME": str(tmp_path)})

    handed_in.as_secrets(tmp_path)

    assert stat.S_IMODE((tmp_path / "index").stat().st_mode) == 0o600
    assert "s3cr3t-word" in (tmp_path / "index").read_text()


def test_plain_values_name_each_secret_that_checks_must_look_for(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine mirror.test login anna password word-in-netrc\n")
    handed_in = BuildSecrets.of(
        {
            "UV_INDEX_URL": "https://anna:s3cr3t-word@mirror.test/simple",
            "https_proxy": "http://user42:pr0xy-word@proxy.test:3128",
            "no_proxy": "localhost",
            "HOME": str(tmp_path),
        }
    )

    values = set(handed_in.plain().values())

    assert {"s3cr3t-word", "pr0xy-word", "word-in-netrc", "user42"} <= values
    assert "localhost" not in values


def test_proxies_are_passed_in_the_case_they_were_given() -> None:
    assert BuildSecrets.of({"https_proxy": "http://proxy.test"}).proxies == {"https_proxy": "http://proxy.test"}
