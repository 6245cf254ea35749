"""Where things are: database and data folder. From the environment and `.env`."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tiers.screenfile.profiles import TRUSTED_HOSTS

_OF_SECRETS = re.compile(r"(?!TAMIS_|PREFECT_|OTEL_|PIP_).*_(KEY|TOKEN|SECRET|PASSWORD|URL|DSN)")
"""Which variables are taken from `.env` for a screen file that names them: with LD_PRELOAD, PATH or
our own settings the two together would run code."""


class Settings(BaseSettings):
    """Read from `TAMIS_...` variables; a secret such as a database password stays in here."""

    model_config = SettingsConfigDict(env_prefix="TAMIS_", extra="ignore")

    database_url: str | None = Field(None, repr=False)
    data_folder: Path = Path("tamis-data")
    alert_review: int = Field(1_000, ge=1)
    """So many candidates in review are told as an event."""
    alert_errors: float = Field(0.05, ge=0, le=1)
    """Such a share of candidates that failed is told as an event."""
    log_format: Literal["text", "json"] = "text"
    """How a run tells on stderr what it does; json is a line a message and a block."""
    record: bool = True
    """Whether Prefect is told of runs that Prefect did not start."""
    keep_server_seconds: float = Field(90.0, ge=0)
    """How long our own Prefect server waits for the next run before it ends."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[Any, ...]:
        def of_the_file() -> dict[str, str]:
            kept = {name.upper(): value for name, value in _kept().items()}
            names = {name: kept.get(f"TAMIS_{name.upper()}") for name in cls.model_fields}
            return {name: value for name, value in names.items() if value is not None}

        return init_settings, env_settings, of_the_file

    def database(self, given: str | None = None) -> str:
        """The database to use: the one given, the setting, or a SQLite file of our own."""
        return given or self.database_url or f"sqlite:///{self.data_folder.resolve()}/tamis.db"


def _kept() -> dict[str, str | None]:
    """What `.env` says, word for word.

    It may have come with a screen file: ${OTHER} would let it take any secret of the environment
    to the database that it names, or call it a key of its own.
    """
    return dotenv_values(".env", interpolate=False)


def load_keys(names: Iterable[str | None]) -> None:
    """Take keys from `.env` into the environment, where tiers look for them; what is set stays.

    So are the hosts that keys of `.env` may go to. That file may have come with a screen file, and
    so it has no say over a key that is set elsewhere.
    """
    kept = _kept()
    for name in filter(None, names):
        value = kept.get(name) if _OF_SECRETS.fullmatch(name) else None
        if value and not os.environ.get(name):
            os.environ[name] = value
    if (hosts := kept.get(TRUSTED_HOSTS)) and TRUSTED_HOSTS not in os.environ:
        entries = re.split(r"[,;\s]+", hosts)
        of_its_keys = [one for one in entries if _is_kept(one.partition("@")[0], kept)]
        os.environ[TRUSTED_HOSTS] = ",".join(of_its_keys)


def _is_kept(name: str, kept: Mapping[str, str | None]) -> bool:
    """Whether the key that is used is the one of `.env`."""
    return bool(kept.get(name)) and (os.environ.get(name) or kept[name]) == kept[name]
