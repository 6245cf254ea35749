"""A screen file is passed around: it cannot send its reader's secrets where nobody wanted them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from flows.cli import app
from flows.settings import Settings, load_keys
from tiers.backends.openai.account import TRUSTED_HOSTS, hide, key_of, key_route
from tiers.backends.openai.batch import BatchServer
from tiers.backends.openai.http import Http
from tiers.opening import inspect
from tiers.screenfile.file import load_screen
from tiers.screenfile.tiers import HttpTier, OpenAIBatchTier
from tiers.tier import Job
from tiers.types import Candidate, TierError

from .openai_server import ModelServer
from .project import screened, write

SECRET = "sk-nobody-else-may-see-this-42"  # noqa: S105
AWAY = "https://evil.example/v1"


def http(**settings: Any) -> HttpTier:
    return HttpTier.model_validate({"name": "only", "backend": "http", "model": "m"} | settings)


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "GROQ_API_KEY", "MY_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv(TRUSTED_HOSTS, "")


@pytest.mark.parametrize(
    "settings",
    [
        {"profile": "openai", "base_url": AWAY},
        {"profile": "openai", "base_url": "https://api.groq.com/openai/v1"},
        {"profile": "openai", "base_url": ["https://api.openai.com/v1", AWAY]},
        {"profile": "openai", "base_url": "https://api.openai.com.evil.example/v1"},
        {"profile": "openai", "base_url": "https://evil.example/api.openai.com/v1"},
        {"profile": "openai", "base_url": "http://api.openai.com/v1"},
        {"profile": "openai", "base_url": "https://api.openai.com./v1"},
        {"profile": "openai", "base_url": "https://api-openai.com/v1"},
        {"profile": "openai", "base_url": "https://xapi.openai.com/v1"},
        {"profile": "openai", "base_url": "https://127.1/v1"},
        {"key_variable": "AWS_SECRET_ACCESS_KEY", "base_url": AWAY},
        {"key_variable": "AWS_SECRET_ACCESS_KEY", "base_url": "http://10.0.0.1:8000/v1"},
        {"key_variable": "AWS_SECRET_ACCESS_KEY", "profile": "openai"},
        {"key_variable": "MY_KEY", "base_url": "http://127.0.0.1.evil.example/v1"},
        {"key_variable": "MY_KEY", "base_url": "http://0.0.0.0:8000/v1"},
    ],
)
def test_a_key_goes_to_no_host_that_nobody_allowed(settings):
    tier = http(**settings)
    said = rf"would send the variable {tier.key_name} to .*; if it belongs there, set TAMIS_TRUSTED"
    for refused in (lambda: key_of(tier), lambda: Http(Job("r", tier)), lambda: inspect(Job("r", tier), "")):  # fmt: skip
        with pytest.raises(TierError, match=said) as told:
            refused()
        assert SECRET not in str(told.value)


def test_a_batch_is_sent_to_no_host_that_nobody_allowed():
    tier = OpenAIBatchTier(name="only", backend="openai_batch", model="m", base_url=AWAY)
    with pytest.raises(TierError, match=r"would send the variable OPENAI_API_KEY to evil\.example"):
        BatchServer(Job("r", tier))


@pytest.mark.parametrize(
    "settings",
    [
        {"profile": "openai"},
        {"profile": "groq"},
        {"key_variable": "OPENAI_API_KEY", "base_url": "https://api.openai.com/v1"},
        {"key_variable": "MY_KEY", "base_url": "http://127.0.0.1:8000/v1"},
        {"key_variable": "MY_KEY", "base_url": "http://localhost:8000/v1"},
        {"key_variable": "MY_KEY", "base_url": "http://[::1]:8000/v1"},
    ],
)
def test_a_key_goes_to_its_providers_host_and_to_this_machine(settings):
    assert key_of(http(**settings)) == SECRET


def test_what_the_refusal_says_to_set_lets_the_key_go_there_and_nowhere_else(monkeypatch):
    urls = ["https://one.example:8443/v1", "http://two.example:8000/v1", "http://[fd00::1]/v1"]
    tier = http(key_variable="MY_KEY", base_url=urls)
    with pytest.raises(TierError, match="plain http shows it") as told:
        key_of(tier)
    value = str(told.value).split(f"{TRUSTED_HOSTS}=")[1].split()[0]
    assert value == "MY_KEY@one.example,MY_KEY@http://two.example,MY_KEY@http://[fd00::1]"
    monkeypatch.setenv(TRUSTED_HOSTS, value)
    assert key_of(tier) == SECRET
    assert key_of(http(key_variable="MY_KEY", base_url="https://two.example/v1")) == SECRET
    for other in (
        http(key_variable="GROQ_API_KEY", base_url=urls),
        http(key_variable="MY_KEY", base_url=AWAY),
        http(key_variable="MY_KEY", base_url="http://one.example:8443/v1"),
    ):
        with pytest.raises(TierError, match="nobody has allowed"):
            key_of(other)


def test_hosts_are_allowed_in_the_environment_or_for_a_key_of_env_in_that_file(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(f"MY_KEY={SECRET}\n{TRUSTED_HOSTS}=MY_KEY@evil.example\n")
    monkeypatch.setenv("MY_KEY", "")
    monkeypatch.delenv(TRUSTED_HOSTS)
    tier = http(key_variable="MY_KEY", base_url=AWAY)
    load_keys([])
    load_keys(["MY_KEY"])
    assert key_of(tier) == SECRET
    monkeypatch.setenv(TRUSTED_HOSTS, "MY_KEY@elsewhere.example")
    load_keys([])
    with pytest.raises(TierError, match="nobody has allowed"):
        key_of(tier)


def test_a_file_env_that_came_with_a_screen_has_no_say_over_keys_of_the_environment(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(f"MY_KEY=bait\n{TRUSTED_HOSTS}=MY_KEY@evil.example\n")
    monkeypatch.delenv(TRUSTED_HOSTS)
    load_keys(["MY_KEY"])
    with pytest.raises(TierError, match="nobody has allowed"):
        key_of(http(key_variable="MY_KEY", base_url=AWAY))


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PATH", "PYTHONPATH", "TAMIS_TRUSTED_FOLDERS", "PREFECT_API_URL", "HTTPS_PROXY", "PYTHONSTARTUP", "OTEL_EXPORTER_OTLP_ENDPOINT"],
)  # fmt: skip
def test_a_screen_and_a_file_env_together_set_nothing_that_is_no_secret(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(f"{name}=/evil\nOTHER_API_KEY=mine\n")
    monkeypatch.setenv(name, "")
    monkeypatch.setenv("OTHER_API_KEY", "")
    load_keys([name, "OTHER_API_KEY", None])
    assert os.environ[name] == ""
    assert os.environ["OTHER_API_KEY"] == "mine"


def test_a_file_env_takes_no_secret_of_the_environment_under_another_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAMIS_DATABASE_URL", raising=False)
    Path(".env").write_text(
        "MINE_KEY=${OPENAI_API_KEY}\nTAMIS_DATABASE_URL=postgresql://evil.example/${OPENAI_API_KEY}\n"
        f"{TRUSTED_HOSTS}=MINE_KEY@evil.example\nTAMIS_DATA_FOLDER=kept\n"
    )
    monkeypatch.delenv(TRUSTED_HOSTS)
    monkeypatch.setenv("MINE_KEY", "")
    load_keys(["MINE_KEY"])
    assert SECRET not in str(key_of(http(key_variable="MINE_KEY", base_url=AWAY)))
    assert Settings().database() == "postgresql://evil.example/${OPENAI_API_KEY}"
    assert Settings().data_folder == Path("kept")
    monkeypatch.setenv("TAMIS_DATA_FOLDER", "said")
    assert Settings().data_folder == Path("said")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1\\@evil.example/v1",
        "http://127.0.0.1#@evil.example/v1",
        "http://local\thost/v1",
    ],
)
def test_an_address_that_two_libraries_could_read_differently_is_refused(url):
    with pytest.raises(ValidationError, match=r"a space, a backslash or a #"):
        http(base_url=url)


def test_check_refuses_what_a_run_would_refuse_and_says_where_each_key_goes(tmp_path):
    policy = "policy: {accept_above: 0.5}"
    write(tmp_path, f"{{name: only, backend: http, profile: openai, model: m, {policy}}}", count=1)
    told = CliRunner().invoke(app, ["check", str(tmp_path / "screen.yaml")])
    assert "key OPENAI_API_KEY goes to api.openai.com" in told.output
    write(tmp_path, f'{{name: only, backend: http, profile: openai, base_url: "{AWAY}", model: m, {policy}}}', count=1)  # fmt: skip
    told = CliRunner().invoke(app, ["check", str(tmp_path / "screen.yaml"), "--json"])
    assert told.exit_code == 2
    assert "would send the variable OPENAI_API_KEY to evil.example" in json.loads(told.output)["problems"][0]  # fmt: skip


def test_a_run_says_at_its_start_where_each_key_goes(folder, capsys):
    with ModelServer(key=SECRET) as server:
        write(folder, f'{{name: only, backend: http, base_url: "{server.url}", model: m, key_variable: MY_KEY}}', count=3)  # fmt: skip
        screened(load_screen(folder / "screen.yaml"))
        assert f"only: the key in MY_KEY goes to 127.0.0.1:{server.port}" in capsys.readouterr().err
    assert key_route(http(base_url=AWAY)) is None


@pytest.mark.parametrize(
    "said", [SECRET, SECRET[:-1], SECRET[1:], SECRET[4:20], f"{SECRET}{SECRET}", SECRET[:-1] * 2]
)
def test_a_key_is_hidden_that_is_repeated_in_part(said):
    assert hide(f"no {said} here", SECRET) in ("no (key) here", "no (key)(key) here")
    assert hide(said, SECRET).strip("(key)") == ""
    assert hide("nothing of it, sk-nobody", SECRET) == "nothing of it, sk-nobody"


def test_a_server_that_repeats_most_of_a_key_does_not_get_it_shown():
    def refuse(_: Any, authorization: str | None) -> Any:
        return 401, {"error": {"message": f"wrong: {str(authorization)[7:-1]}"}}, {}

    server = ModelServer()
    server.reply = refuse  # type: ignore[method-assign]
    with server:
        opened = Http(Job("r", http(base_url=server.url, key_variable="MY_KEY")))
        with pytest.raises(TierError, match=r"wrong: \(key\)\); check MY_KEY"):
            list(opened.judge([Candidate(1, "x")]))
        opened.close()
