from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from pathlib import Path


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_environment({}) == Settings()


def test_values_are_parsed_to_their_types() -> None:
    settings = Settings.from_environment(
        {
            "TRUTHGRAPH_HOST": "0.0.0.0",  # noqa: S104
            "TRUTHGRAPH_PORT": "9000",
            "TRUTHGRAPH_DRAIN_SECONDS": "2.5",
            "TRUTHGRAPH_ALLOW_ANONYMOUS": "true",
            "TRUTHGRAPH_TRUSTED_PROXIES": "10.0.0.0/8, ::1",
            "TRUTHGRAPH_DEVICE": "cuda",
        }
    )
    assert (settings.host, settings.port, settings.drain_seconds) == ("0.0.0.0", 9000, 2.5)  # noqa: S104
    assert settings.allow_anonymous
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "::1/128"]
    assert settings.device == "cuda"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PORT", "-1"),
        ("PORT", "8O80"),
        ("DRAIN_SECONDS", "0"),
        ("DRAIN_SECONDS", "nan"),
        ("SHUTDOWN_DELAY_SECONDS", "-1"),
        ("DEVICE", "gpu"),
        ("DTYPE", "float16"),
        ("LOG_LEVEL", "LOUD"),
        ("ALLOW_ANONYMOUS", "perhaps"),
        ("TRUSTED_PROXIES", "10.0.0.0/99"),
        ("DATABASE_URL", "mysql://host/db"),
    ],
)
def test_an_invalid_value_is_refused_with_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({f"TRUTHGRAPH_{name}": value})
    assert caught.value.field == f"TRUTHGRAPH_{name}"


def test_shutdown_delay_may_be_zero() -> None:
    settings = Settings.from_environment({"TRUTHGRAPH_SHUTDOWN_DELAY_SECONDS": "0"})

    assert settings.shutdown_delay_seconds == 0.0


def test_a_model_in_the_image_takes_precedence_over_the_volume(tmp_path: Path) -> None:
    own, added = tmp_path / "own", tmp_path / "added"
    for folder in (own / "both", added / "both", added / "volume"):
        folder.mkdir(parents=True)
    settings = Settings.from_environment({"TRUTHGRAPH_MODELS_DIR": str(own), "TRUTHGRAPH_ADDED_MODELS_DIR": str(added)})
    assert settings.models_directory_of("both") == own
    assert settings.models_directory_of("volume") == added
    assert settings.models_directory_of("neither") == own


def test_an_empty_value_counts_as_absent() -> None:
    assert Settings.from_environment({"TRUTHGRAPH_PORT": "", "TRUTHGRAPH_DATABASE_URL": " "}) == Settings()


def test_the_database_url_can_come_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://u:p@h/d\n", encoding="utf-8")
    assert (
        Settings.from_environment({"TRUTHGRAPH_DATABASE_URL_FILE": str(secret)}).database_url == "postgresql://u:p@h/d"
    )


def test_an_invalid_database_url_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"TRUTHGRAPH_DATABASE_URL": "mysql://u:secret@h/d"})
    assert "secret" not in str(caught.value)


def test_a_database_url_and_a_file_together_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://h/d", encoding="utf-8")
    with pytest.raises(SettingsError):
        Settings.from_environment(
            {"TRUTHGRAPH_DATABASE_URL_FILE": str(secret), "TRUTHGRAPH_DATABASE_URL": "postgresql://h/d"}
        )


def test_unknown_variables_are_listed() -> None:
    assert Settings.from_environment({"TRUTHGRAPH_PROT": "1", "OTHER": "2"}).unknown == ("TRUTHGRAPH_PROT",)


def test_every_setting_is_described_with_its_default() -> None:
    lines = Settings.describe().splitlines()
    assert len(lines) == len(fields(Settings)) - 1  # all but `unknown`
    [port] = [line for line in lines if "TRUTHGRAPH_PORT " in line]
    assert port.endswith("port to listen on, 0 for any (default: 8000)")
