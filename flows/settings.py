"""Where things are: database, data folder, Prefect. From the environment and `.env`."""

import os
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_PREFECT_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Prefect gives its ephemeral server 20 s to start, which a busy machine needs more than.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "240",
}


class Settings(BaseSettings):
    """Read from `TAMIS_...` variables; a secret such as a database password stays in here."""

    model_config = SettingsConfigDict(env_prefix="TAMIS_", env_file=".env", extra="ignore")

    database_url: str | None = Field(None, repr=False)
    data_folder: Path = Path("tamis-data")

    def database(self, given: str | None = None) -> str:
        """The database to use: the one given, the setting, or a SQLite file of our own."""
        return given or self.database_url or f"sqlite:///{self.data_folder.resolve()}/tamis.db"


def prepare_prefect(settings: Settings) -> str | None:
    """Point Prefect at the user's server if one answers, else at an ephemeral one of our own.

    Must run before Prefect is first imported, because Prefect reads the environment only then.

    Returns:
        The configured server that does not answer, so that the user can be told; else None.
    """
    for name, value in _PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    url = _configured_server()
    if url and _answers(url):
        os.environ["PREFECT_API_URL"] = url
        return None
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = str(prefect_home(settings))
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    return url


def prefect_home(settings: Settings) -> Path:
    """The folder of our own Prefect: its database holds the runs that the UI shows."""
    home = settings.data_folder.resolve() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    return home


def _configured_server() -> str | None:
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = home / "profiles.toml"
    if not profiles.is_file():
        return None
    try:
        known = tomllib.loads(profiles.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
    active = os.environ.get("PREFECT_PROFILE") or known.get("active")
    url = known.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None


def _answers(url: str) -> bool:
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=3) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False
