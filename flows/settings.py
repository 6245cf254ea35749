"""Where things are: database and data folder. From the environment and `.env`."""

import os
from collections.abc import Iterable
from pathlib import Path

from dotenv import dotenv_values
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tiers.screenfile.profiles import TRUSTED_HOSTS


class Settings(BaseSettings):
    """Read from `TAMIS_...` variables; a secret such as a database password stays in here."""

    model_config = SettingsConfigDict(env_prefix="TAMIS_", env_file=".env", extra="ignore")

    database_url: str | None = Field(None, repr=False)
    data_folder: Path = Path("tamis-data")
    record: bool = True
    """Whether Prefect is told of runs that Prefect did not start."""
    keep_server_seconds: float = Field(90.0, ge=0)
    """How long our own Prefect server waits for the next run before it ends."""
    trusted_hosts: str = ""
    """Which key may go to which host beside its provider's: `MY_KEY@host, MY_KEY@http://other`."""

    def database(self, given: str | None = None) -> str:
        """The database to use: the one given, the setting, or a SQLite file of our own."""
        return given or self.database_url or f"sqlite:///{self.data_folder.resolve()}/tamis.db"


def load_keys(names: Iterable[str | None]) -> None:
    """Take keys from `.env` into the environment, where tiers look for them; what is set stays.

    So are the hosts that keys may go to.
    """
    kept = dotenv_values(".env")
    if trusted := Settings().trusted_hosts:
        os.environ[TRUSTED_HOSTS] = trusted
    for name in names:
        value = kept.get(name) if name is not None else None
        if name is not None and value and not os.environ.get(name):
            os.environ[name] = value
