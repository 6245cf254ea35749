"""The sections of a screen file that describe tiers: one class for each backend."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    JsonValue,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tiers.policy import Policy
from tiers.prompt import check_layout
from tiers.screenfile.ask import Ask, CriteriaAsk
from tiers.screenfile.limits import BudgetSection, PriceSection
from tiers.screenfile.profiles import PROFILES, Profile
from tiers.screenfile.section import Section, shape_of


class TierSection(Section):
    """What every tier has."""

    operational: ClassVar[frozenset[str]] = frozenset({"budget", "price"})
    """Settings that may change while a run is unfinished: they move no score."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$")
    policy: Policy | None = None
    budget: BudgetSection | None = None
    price: PriceSection | None = None
    """`0` for a tier that costs nothing."""

    @field_validator("price", mode="before")
    @classmethod
    def _free(cls, price: Any) -> Any:
        if isinstance(price, bool) or not isinstance(price, int | float):
            return price
        if price:
            raise ValueError(
                f"is one number, {price:g}, and may mean tokens or hours; write {{input: 0.10, "
                "output: 0.40}, {hour: 0.50}, or 0 if it costs nothing"
            )
        return {"hour": 0}

    def anchored(self, _folder: Path) -> Self:
        """This tier with the names of files that are relative to a folder made absolute."""
        return self

    @property
    def machines(self) -> int:
        """How many machines answer at a time; a price an hour counts for each."""
        return 1


class WorkersSection(Section):
    """Engines of a tier on the machines of a Ray cluster."""

    ray: str = Field(pattern=r"^(auto|[\w.-]+:[0-9]{1,5})$")
    """`auto` for the cluster that this machine belongs to, or the head's `host:port`."""
    count: int = Field(1, ge=1, le=1024)
    """How many engines, each with resources of its own."""
    cpus: float = Field(1, ge=0)
    """Processors that each engine takes."""
    gpus: float = Field(0, ge=0)
    """GPUs that each engine takes; Ray shows it those alone."""
    patience_seconds: float = Field(600, gt=0)
    """How long a worker may say nothing before its candidates are asked elsewhere, and how long to
    wait for a machine with room."""


class EngineTier(TierSection):
    """What every tier has whose engine is ours to start."""

    operational: ClassVar[frozenset[str]] = TierSection.operational | {"workers"}

    workers: WorkersSection | None = None
    """On other machines; by default one engine on this one."""

    @property
    def machines(self) -> int:
        return 1 if self.workers is None else self.workers.count


class ModelTierSection(TierSection):
    """What every tier has that asks a language model."""

    panel: ClassVar[bool] = False
    """Whether several criteria are read in one pass."""

    ask: Ask = "yes_no"
    prompt: str | None = None
    """Layout with `{{ rubric }}`, `{{ candidate }}` and `{{ question }}`."""
    max_candidate_tokens: int = Field(1500, gt=0)
    """Longer candidates are handled as `too_long` says."""
    too_long: Literal["review", "head", "head_tail"] = "review"
    """Send to a person, or judge the beginning, or beginning and end; a cut is recorded."""
    max_tokens: int = Field(300, gt=0)
    """The longest reply of a `json` tier; a longer one goes to review."""

    @field_validator("ask", mode="before")
    @classmethod
    def _short_json(cls, ask: Any) -> Any:
        return {"json": {"reasons": "list of str"}} if ask == "json" else ask

    @field_validator("prompt")
    @classmethod
    def _layout(cls, prompt: str | None) -> str | None:
        return prompt if prompt is None else check_layout(prompt)

    @field_validator("ask")
    @classmethod
    def _criteria(cls, ask: Ask) -> Ask:
        if isinstance(ask, CriteriaAsk) and not cls.panel:
            raise ValueError(
                "criteria are read by backend: llama alone; write a field for each of them, such "
                'as ask: {json: {years: "yes | no"}}'
            )
        return ask


class HubModel(Section):
    """A model file on the Hugging Face hub, fetched once: `owner/repository/file.gguf`."""

    hub: str = Field(pattern=r"^[^/\s]+/[^/\s]+/\S+$")


class LlamaTier(EngineTier, ModelTierSection):
    """A GGUF model run by llama.cpp in a child process of its own."""

    panel: ClassVar[bool] = True

    backend: Literal["llama"]
    model: Annotated[
        Annotated[str, Tag("@word")] | Annotated[HubModel, Tag("@mapping")], Discriminator(shape_of)
    ]
    """A file, a preset (gemma-2-2b, gemma-2-9b, gemma-3-12b), or `hub: owner/repository/file`."""
    chat: bool | None = None
    """Wrap the prompt in the model's chat template; by default if it has one and no `prompt` is
    given."""
    threads: int | None = Field(None, gt=0)
    """Default: the processors this process may use."""
    n_gpu_layers: int = Field(0, ge=-1)
    """Layers on the GPU, -1 for all. An error where llama.cpp was built without GPU support."""
    split_mode: Literal["none", "layer", "row"] | None = None
    main_gpu: int = Field(0, ge=0)
    tensor_split: tuple[float, ...] | None = None
    batch_tokens: int | None = Field(None, ge=32, le=8192)
    """Tokens per call of llama.cpp; default 256, and 2048 with a GPU."""
    context_tokens: int | None = Field(None, gt=0)
    """Cells of the key-value cache; by default what the rubric and the candidates need."""
    active: int = Field(8, ge=1, le=64)
    """Replies that a `json` tier writes at once."""
    flash_attn: bool = True
    kv_type: Literal["f16", "f32", "q8_0"] = "f16"

    @field_validator("model", mode="before")
    @classmethod
    def _hub_in_short(cls, model: Any) -> Any:
        if isinstance(model, str) and model.startswith("hub:"):
            return {"hub": model.removeprefix("hub:").strip()}
        return model

    def anchored(self, folder: Path) -> Self:
        if isinstance(self.model, str) and (folder / self.model).is_file():
            return self.model_copy(update={"model": str(folder / self.model)})
        return self


class VllmTier(EngineTier, ModelTierSection):
    """A model in Hugging Face's layout, run by vLLM in a child process of its own."""

    backend: Literal["vllm"]
    model: str = Field(min_length=1)
    """A folder, or a name on the hub."""
    chat: bool | None = None
    """Wrap the prompt in the model's chat template; by default if it has one and no `prompt` is
    given."""
    options: dict[str, JsonValue] = Field({})
    """Given to `vllm.LLM` by name, such as `tensor_parallel_size`."""

    @field_validator("options")
    @classmethod
    def _no_secret_and_no_vain_speculation(
        cls, options: dict[str, JsonValue], info: ValidationInfo
    ) -> dict[str, JsonValue]:
        if "hf_token" in options:
            raise ValueError("a screen file holds no secrets; set HF_TOKEN in the environment")
        speculation = ("speculative_config", "spec_method", "spec_model", "spec_tokens")
        guessing = [name for name in speculation if name in options]
        if guessing and isinstance(ask := info.data.get("ask"), str):
            raise ValueError(
                f"'{guessing[0]}' speeds up the writing of text, and ask: {ask} writes none; "
                "leave it out"
            )
        return options

    def anchored(self, folder: Path) -> Self:
        if (folder / self.model).is_dir():
            return self.model_copy(update={"model": str(folder / self.model)})
        return self


class RemoteTier(ModelTierSection):
    """What tiers have that ask a server over the OpenAI protocol."""

    profile: (
        Literal["openai", "groq", "together", "fireworks", "vllm", "llama-server", "ollama"] | None
    ) = None
    """A known kind of server: its address, the variable of its key, its habits."""
    model: str = Field(min_length=1)
    """The model's name, as the server knows it."""
    version: str | None = None
    """Names what is served, in place of the addresses: the addresses may then change in a run."""
    api: Literal["chat", "completions"] = "chat"
    """`completions` sends the prompt as it is, for models without a chat format."""
    key_variable: str | None = None
    """The environment variable that holds the key; by default the profile's."""
    extra: dict[str, JsonValue] = Field({})
    """Further keys of each request, such as `reasoning_effort: low`."""

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if ours := {"model", "messages", "prompt", "stream", "n"} & extra.keys():
            raise ValueError(
                f"'{min(ours)}' is written by Tamis; leave it out of extra"
                + ", and write model: in the tier" * ("model" in ours)
            )
        return extra

    @field_validator("key_variable")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        # The value is not repeated: it may be a key that was pasted here.
        if name is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,79}", name):
            raise ValueError(
                "is no name of a variable; write key_variable: OPENAI_API_KEY, and put the key "
                "itself into that variable or into .env"
            )
        return name

    @property
    def known(self) -> Profile:
        """The profile's habits, or what can be expected of any server."""
        return PROFILES[self.profile or "any"]

    @property
    def key_name(self) -> str | None:
        """The variable that holds the key, if one is needed."""
        return self.key_variable or self.known.key_variable


class HttpTier(RemoteTier):
    """A model behind any OpenAI-compatible server, at one address or several."""

    operational: ClassVar[frozenset[str]] = TierSection.operational | {
        "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_seconds", "retries",
        "patience_seconds", "key_variable",
    }  # fmt: skip

    backend: Literal["http"]
    base_url: tuple[str, ...] = ()
    """Addresses that serve the same model; by default the profile's."""
    concurrency: int = Field(64, ge=1, le=2048)
    """Requests under way at each address at most; fewer where more does not pay."""
    requests_per_minute: float | None = Field(None, gt=0)
    """At each address."""
    tokens_per_minute: float | None = Field(None, gt=0)
    timeout_seconds: float = Field(120, gt=0)
    retries: int = Field(6, ge=0, le=50)
    """How often a request is repeated that failed for a reason that may pass."""
    patience_seconds: float = Field(600, ge=0)
    """How long to wait for a server that went away before the tier stops."""
    prompts_per_request: int = Field(16, ge=1, le=128)
    """With `api: completions`, where the server takes several."""

    @field_validator("base_url", mode="before")
    @classmethod
    def _one_or_many(cls, urls: Any) -> Any:
        return (urls,) if isinstance(urls, str) else urls

    @field_validator("base_url")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_address(url) for url in urls)

    @model_validator(mode="after")
    def _somewhere(self) -> "HttpTier":
        if not self.urls:
            raise ValueError("names no server; write base_url: http://127.0.0.1:8000/v1")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """All addresses, without a slash at their ends."""
        default = self.known.base_url
        return self.base_url or ((default,) if default else ())

    @property
    def machines(self) -> int:
        return len(self.urls)


class OpenAIBatchTier(RemoteTier):
    """A model asked through the Batch API: half the price, by tomorrow."""

    operational: ClassVar[frozenset[str]] = TierSection.operational | {
        "key_variable", "enqueued_tokens", "lines_per_file", "bytes_per_file", "rounds",
    }  # fmt: skip

    backend: Literal["openai_batch"]
    profile: Literal["openai"] = "openai"
    base_url: str | None = None
    enqueued_tokens: int = Field(2_000_000, gt=0)
    """Tokens that the account may have waiting; more is submitted in waves."""
    lines_per_file: int = Field(50_000, ge=1, le=50_000)
    bytes_per_file: int = Field(200_000_000, ge=10_000, le=200_000_000)
    rounds: int = Field(3, ge=1, le=20)
    """How often a line is submitted before it counts as failed."""

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        return None if url is None else _address(url)

    @property
    def urls(self) -> tuple[str, ...]:
        """The one address."""
        return (self.base_url or str(self.known.base_url),)


def _address(url: str) -> str:
    # What one library strips and another keeps would let them see two hosts in one address.
    if re.search(r"[\x00-\x20\x7f-\xa0\\#]", url):
        raise ValueError(
            "base_url holds a space, a backslash or a #; write it as http://127.0.0.1:8000/v1"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("base_url is no address; write http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            "base_url holds a password or a query; write the bare address, and the key into the "
            "variable that key_variable names"
        )
    return url.rstrip("/")


class PythonTier(EngineTier):
    """A user's own tier: `class Mine: def __init__(self, rubric, **options); judge; close`."""

    backend: Literal["python"]
    path: str = Field(pattern=r"^[\w.]+:\w+$")
    """`package.module:Class`, importable from the screen file's folder."""
    options: dict[str, JsonValue] = Field({})
    folder: str = "."

    _code_allowed: bool = PrivateAttr(False)

    def anchored(self, folder: Path) -> Self:
        return self.model_copy(update={"folder": str(folder / self.folder)})

    @property
    def code_allowed(self) -> bool:
        """Whether the caller said that this class may run. Kept in memory, and never in a run."""
        return self._code_allowed

    def allowing_code(self) -> Self:
        """This tier, allowed to run its class wherever that lies."""
        allowed = self.model_copy()
        allowed._code_allowed = True
        return allowed


class ClassifierTier(EngineTier):
    """A linear model over words, trained by `tamis distil` on labels and on a tier's scores."""

    operational: ClassVar[frozenset[str]] = EngineTier.operational | {"distil"}

    backend: Literal["classifier"]
    version: str | None = Field(None, pattern=r"^[0-9a-f]{16}$")
    """One that was trained before; by default the newest that was admitted."""
    distil: Literal["by_hand", "auto"] = "by_hand"
    """`auto`: a scheduled run trains and tests a version once labels have grown by a quarter."""
    price: PriceSection | None = PriceSection(hour=0)

    _body: bytes | None = PrivateAttr(None)

    @property
    def body(self) -> bytes | None:
        """The weights of the version. Kept in memory, and never in a run."""
        return self._body

    def fitted(self, version: str, body: bytes) -> Self:
        """This tier with the weights of a version."""
        made = self.model_copy(update={"version": version})
        made._body = body
        return made


AnyTier = LlamaTier | VllmTier | HttpTier | OpenAIBatchTier | PythonTier | ClassifierTier
Tier = Annotated[AnyTier, Field(discriminator="backend")]
BACKENDS: dict[str, type[BaseModel]] = {
    "llama": LlamaTier,
    "vllm": VllmTier,
    "http": HttpTier,
    "openai_batch": OpenAIBatchTier,
    "python": PythonTier,
    "classifier": ClassifierTier,
}
