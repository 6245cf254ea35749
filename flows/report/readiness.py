"""Could this screen run here: what the machine has, what answers, what is missing."""

import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import NamedTuple

from sqlalchemy import make_url

from db.engine import HEAD, check_ready
from db.errors import DatabaseError, EmptyDatabase, shown
from flows.server import answering_server, configured_server
from flows.settings import Settings, load_keys
from tiers.backends.files import PRESETS, kept_file
from tiers.cluster import require_head
from tiers.planning.fit import Fit, fits_of, presets_for
from tiers.planning.machine import Machine, can_see_nvidia, look
from tiers.prices import check_prices
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import STDIN, Screen
from tiers.screenfile.limits import PriceSection
from tiers.screenfile.tiers import AnyTier, EngineTier, HubModel, LlamaTier, RemoteTier, VllmTier
from tiers.tier import Job, job_of
from tiers.types import TierError

ANSWER_SECONDS = 2.0
"""For one server to answer."""
ALL_SECONDS = 4.0
"""For all of them, asked at the same time."""
LEAST_DISK = 200 << 20
SPARE_DISK = 2 << 30


class Answer(NamedTuple):
    """What came of one question: words for the table, and what to do where something is wrong."""

    words: str
    missing: str | None = None


@dataclass
class Readiness:
    """The JSON of `tamis doctor`."""

    machine: Machine
    answers: dict[str, str] = field(default_factory=dict)
    """Database, Prefect, input, keys, servers, clusters: how each one is."""
    models: list[Fit] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What keeps the screen from running, each with what to do."""
    notes: list[str] = field(default_factory=list)


def readiness(settings: Settings, url: str, definition: Screen | None) -> Readiness:
    """Look at the machine, and ask whatever the screen needs, all at the same time."""
    tiers = () if definition is None else definition.tiers
    load_keys(tier.key_name for tier in tiers if isinstance(tier, RemoteTier))
    asked = _Asked(
        {"database": lambda: _database(url), "Prefect": _prefect} | _of_screen(definition)
    )
    machine = look(settings.data_folder)
    found = Readiness(machine)
    if definition is None:
        found.models = presets_for(_any_job(), machine)
    else:
        jobs = [job_of(definition, i) for i in range(len(tiers))]
        found.models, found.missing = fits_of(jobs, machine)
    for tier in tiers:
        found.missing += _engine_lacks(tier, machine)
    found.missing += [
        f"tier '{one.tier}': {one.model} needs {gigabytes(one.need.total)} and "
        f"{gigabytes(one.room)} of {one.where} are free; take a smaller model or quantization, "
        "or lower max_candidate_tokens"
        for one in found.models
        if one.chosen and not one.fits
    ]
    if machine.disk < LEAST_DISK:
        found.missing.append(
            f"the data folder's disk has {gigabytes(machine.disk)} free; make room, or name "
            "another folder in TAMIS_DATA_FOLDER"
        )
    found.notes += _notes(machine, tiers)
    for name, answer in asked.answers():
        found.answers[name] = answer.words
        found.missing += [answer.missing] if answer.missing else []
    return found


def gigabytes(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.0f} MB"


class _Asked:
    """Questions under way, each in a thread that nobody waits for beyond its time."""

    def __init__(self, questions: dict[str, Callable[[], Answer]]) -> None:
        self._found: dict[str, Answer] = {}
        self._until = time.monotonic() + ALL_SECONDS
        self._threads = {
            name: threading.Thread(target=self._ask, args=(name, question), daemon=True)
            for name, question in questions.items()
        }
        for thread in self._threads.values():
            thread.start()

    def _ask(self, name: str, question: Callable[[], Answer]) -> None:
        try:
            self._found[name] = question()
        except (DatabaseError, ScreenError, TierError) as error:
            self._found[name] = Answer("not usable", str(error))
        except Exception as error:  # noqa: BLE001 - a library's own, and the others are to be told
            words = f"{type(error).__name__}: {error}"
            self._found[name] = Answer("not usable", f"{name}: {words}")

    def answers(self) -> Iterator[tuple[str, Answer]]:
        """Each with its name; what has not answered in time says so."""
        for name, thread in self._threads.items():
            thread.join(max(0.0, self._until - time.monotonic()))
            late = f"no answer within {ALL_SECONDS:g} s"
            yield name, self._found.get(name) or Answer(late, f"{name}: {late}")


def _of_screen(definition: Screen | None) -> dict[str, Callable[[], Answer]]:
    if definition is None:
        return {}
    questions: dict[str, Callable[[], Answer]] = {
        "input": lambda: _input(definition),
        "prices": lambda: _prices(definition),
    }
    for tier in definition.tiers:
        questions |= _of_tier(tier)
    return questions


def _of_tier(tier: AnyTier) -> dict[str, Callable[[], Answer]]:
    questions: dict[str, Callable[[], Answer]] = {}
    if isinstance(tier, RemoteTier):
        if tier.key_name is not None:
            questions[f"key {tier.key_name}"] = lambda: _key(tier)
        for url in tier.urls:
            questions[f"server {url}"] = lambda url=url: _server(url, tier.name)  # type: ignore[misc]
    if isinstance(tier, EngineTier) and tier.workers is not None:
        ray = tier.workers.ray
        questions[f"Ray {ray}"] = lambda: _ray(ray, tier.name)
    return questions


def _database(url: str) -> Answer:
    state = f"at revision {HEAD}"
    try:
        check_ready(url, create=False)
    except EmptyDatabase:
        state = "nothing there yet; the first run makes it"
    return Answer(f"{shown(make_url(url))}: {state}")


def _prefect() -> Answer:
    named = configured_server()
    if named is None:
        return Answer("no server named; a run brings its own")
    if answering_server() is None:
        return Answer(f"{named} does not answer; a run would bring its own")
    return Answer(f"{named} answers")


def _input(definition: Screen) -> Answer:
    from flows.files.ingest import check_input

    source = definition.candidates.source
    if source == STDIN:
        return Answer("standard input, which is read once the run begins")
    check_input(definition.candidates)
    return Answer(f"{definition.candidates.address}: can be read")


def _prices(definition: Screen) -> Answer:
    check_prices(definition)
    return Answer("every budget in dollars has its prices")


def _key(tier: RemoteTier) -> Answer:
    from tiers.backends.openai.account import key_of

    key_of(tier)  # type: ignore[arg-type]
    return Answer("set")


def _server(url: str, tier: str) -> Answer:
    """Whether a server answers at all. No key is sent: one that refuses without it answers."""
    request = urllib.request.Request(f"{url}/models")  # noqa: S310 - the screen's own address
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):  # noqa: S310
            return Answer("answers")
    except urllib.error.HTTPError as error:
        return Answer(f"answers (status {error.code} without a key)")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return Answer(
            f"does not answer: {reason}",
            f"tier '{tier}': {url} does not answer ({reason}); start the server, or correct "
            "base_url",
        )


def _ray(address: str, tier: str) -> Answer:
    if find_spec("ray") is None:
        return Answer("not installed", f"tier '{tier}': run: pip install 'tamis[ray]'")
    if address == "auto":
        named = os.environ.get("RAY_ADDRESS") or "the cluster of this machine"
        return Answer(f"{named}, not asked")
    try:
        require_head(address, tier)
    except TierError as error:
        return Answer("does not answer", str(error))
    return Answer("answers")


def _engine_lacks(tier: AnyTier, machine: Machine) -> Iterator[str]:
    """What is not installed that a tier's engine needs on this machine."""
    if isinstance(tier, EngineTier) and tier.workers is not None:
        return
    if isinstance(tier, VllmTier) and find_spec("vllm") is None:
        yield f"tier '{tier.name}': vLLM is not installed; run: pip install 'tamis[vllm]'"
    if not isinstance(tier, LlamaTier):
        return
    if _must_be_fetched(tier) and find_spec("huggingface_hub") is None:
        yield f"tier '{tier.name}': its model is fetched by: pip install 'tamis[hub]'"
    if machine.llama.problem:
        yield f"tier '{tier.name}': {machine.llama.problem}"
    elif tier.n_gpu_layers and not machine.llama.gpu:
        yield (
            f"tier '{tier.name}': n_gpu_layers is {tier.n_gpu_layers}, but this llama.cpp was "
            "built without GPU support; reinstall with CMAKE_ARGS='-DGGML_CUDA=on' pip install "
            "--force-reinstall --no-cache-dir llama-cpp-python (-DGGML_METAL=on on a Mac), or "
            "leave n_gpu_layers out"
        )


def _must_be_fetched(tier: LlamaTier) -> bool:
    """Whether the first run has to fetch the tier's model."""
    of_hub = isinstance(tier.model, HubModel) or tier.model in PRESETS
    return of_hub and kept_file(tier.model) is None


def _notes(machine: Machine, tiers: tuple[AnyTier, ...]) -> Iterator[str]:
    if LEAST_DISK <= machine.disk < SPARE_DISK:
        yield f"the data folder's disk has only {gigabytes(machine.disk)} free"
    for one in tiers:
        if isinstance(one, LlamaTier) and _must_be_fetched(one):
            yield f"the model of tier '{one.name}' is fetched from the hub when it is first used"
    if not machine.gpus and can_see_nvidia() and find_spec("pynvml") is None:
        yield "there is an NVIDIA driver: pip install 'tamis[gpu]' shows its cards here"


def _any_job() -> Job:
    """A usual tier, to say of a machine alone what it could hold."""
    any_tier = LlamaTier(
        name="any", backend="llama", model="gemma-2-2b", price=PriceSection(hour=0)
    )
    return Job("x" * 3000, any_tier)
