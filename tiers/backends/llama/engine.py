"""llama.cpp's low-level interface made safe: a model, a context with a shared prompt, a grammar.

One context with one unified key-value cache. Sequence 0 holds the shared prompt; a candidate
forks it (no copy), appends its own tokens, and is dropped when its answer is read. All candidates
form one stream of tokens that is cut every `batch` tokens, so that every call is full and a
candidate may begin in one call and end in the next.

Only this file touches ctypes. What llama.cpp would abort the process for (too many tokens, too
many answers in a call) is refused or counted here first.
"""

import ctypes
import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as C
import numpy as np
import orjson
from llama_cpp.llama_grammar import json_schema_to_gbnf
from numpy.typing import NDArray

from tiers.backends.llama.sizes import batch_size, cells, sequences
from tiers.container import cores
from tiers.screenfile.tiers import LlamaTier
from tiers.types import TierError

Tokens = NDArray[np.int32]

KV_TYPES = {"f16": C.GGML_TYPE_F16, "f32": C.GGML_TYPE_F32, "q8_0": C.GGML_TYPE_Q8_0}
WARNING, ERROR = 3, 4  # ggml_log_level
SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}


@dataclass(slots=True)
class Prepared:
    """A candidate's own tokens on their way through the engine."""

    id: int
    tokens: Tokens
    note: str | None
    before: int = 0
    """Tokens of its sequence after the shared prompt that are in the cache already."""
    sequence: int = 0
    sent: int = 0
    seconds: float = 0.0


class Model:
    """A loaded GGUF file: its vocabulary and facts."""

    def __init__(self, path: Path, config: LlamaTier, *, only_vocabulary: bool = False) -> None:
        """Load the file, or of it only what reads text.

        Raises:
            TierError: llama.cpp cannot load it, or it is of a kind that cannot share a prompt.
        """
        if config.n_gpu_layers and not C.llama_supports_gpu_offload():
            raise TierError(
                f"n_gpu_layers is {config.n_gpu_layers}, but this llama.cpp was built without GPU "
                "support; reinstall with CMAKE_ARGS='-DGGML_CUDA=on' pip install "
                "--force-reinstall --no-cache-dir llama-cpp-python, or leave n_gpu_layers out"
            )
        log = Log()
        C.llama_backend_init()
        parameters = C.llama_model_default_params()
        parameters.n_gpu_layers = config.n_gpu_layers
        parameters.vocab_only = only_vocabulary
        parameters.main_gpu = config.main_gpu
        if config.split_mode is not None:
            parameters.split_mode = SPLIT_MODES[config.split_mode]
        if config.tensor_split is not None:
            self._split = (ctypes.c_float * C.llama_max_devices())(*config.tensor_split)
            parameters.tensor_split = self._split
        self.pointer = C.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.pointer:
            raise TierError(
                f"llama.cpp cannot load '{path}': {log.reason()}; the file may be cut or damaged: "
                "fetch it again, and look with: tamis doctor FILE"
            )
        self.vocabulary = C.llama_model_get_vocab(self.pointer)
        self.size: int = C.llama_vocab_n_tokens(self.vocabulary)
        self.trained_context: int = C.llama_model_n_ctx_train(self.pointer)
        if C.llama_model_is_recurrent(self.pointer) or C.llama_model_is_hybrid(self.pointer):
            self.close()
            raise TierError(f"'{path.name}' is a recurrent model, which cannot share a prompt")
        if C.llama_model_has_encoder(self.pointer):
            self.close()
            raise TierError(f"'{path.name}' has an encoder; use a decoder-only model")

    @property
    def architecture(self) -> str:
        return self._fact("general.architecture")

    @property
    def chat_template(self) -> str | None:
        template = C.llama_model_chat_template(self.pointer, None)
        return template.decode("utf-8", "replace") if template else None

    def _fact(self, name: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        C.llama_model_meta_val_str(self.pointer, name.encode(), buffer, 256)
        return buffer.value.decode("utf-8", "replace")

    def tokenize(self, text: str, *, special: bool, start: bool = False) -> Tokens:
        """Token ids; control tokens are parsed only where `special`, so never in a candidate."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        buffer = np.empty(room, np.int32)
        count = C.llama_tokenize(
            self.vocabulary, data, len(data), _pointer(buffer, C.llama_token), room, False, special
        )
        if count < 0:
            raise TierError(f"llama.cpp cannot tokenize a text of {len(data):,} bytes")
        tokens = buffer[:count]
        if start and C.llama_vocab_get_add_bos(self.vocabulary):
            return np.concatenate([[np.int32(C.llama_vocab_bos(self.vocabulary))], tokens])
        return tokens

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        count = C.llama_token_to_piece(self.vocabulary, token, buffer, 512, 0, False)
        return bytes(buffer.raw[: max(count, 0)])

    def ends(self, token: int) -> bool:
        return bool(C.llama_vocab_is_eog(self.vocabulary, token))

    def close(self) -> None:
        if self.pointer:
            C.llama_model_free(self.pointer)
            self.pointer = None


class Grammar:
    """A JSON schema as llama.cpp's grammar, one clone of it for each reply."""

    def __init__(self, model: Model, schema: dict[str, Any], lead: str) -> None:
        """A grammar of replies that all begin with `lead`."""
        self._model = model
        text = json_schema_to_gbnf(
            orjson.dumps(schema).decode(), prop_order=list(schema["properties"])
        )
        self._first = C.llama_sampler_init_grammar(model.vocabulary, text.encode(), b"root")
        if not self._first:
            raise TierError("llama.cpp refuses the grammar of the json fields; use simpler kinds")
        for token in model.tokenize(lead, special=False):
            C.llama_sampler_accept(self._first, int(token))
        self._one = C.llama_token_data()
        self._row = np.zeros(
            model.size, [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        )

    def clone(self) -> Any:
        return C.llama_sampler_clone(self._first)

    def accept(self, sampler: Any, token: int) -> None:
        C.llama_sampler_accept(sampler, token)

    def free(self, sampler: Any) -> None:
        C.llama_sampler_free(sampler)

    def pick(self, sampler: Any, logits: NDArray[np.float32]) -> int:
        """The likeliest token that the grammar allows.

        The likeliest of all nearly always is: checking that one first costs 0.2 ms where the
        whole vocabulary of a Gemma costs 24 to 66.
        """
        best = int(logits.argmax())
        self._one.id, self._one.logit, self._one.p = best, float(logits[best]), 0.0
        one = C.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)
        C.llama_sampler_apply(sampler, ctypes.byref(one))
        if math.isfinite(self._one.logit):
            return best
        self._row["id"] = np.arange(self._model.size)
        self._row["logit"] = logits
        data = ctypes.cast(self._row.ctypes.data, C.llama_token_data_p)
        every = C.llama_token_data_array(data, self._model.size, -1, False)
        C.llama_sampler_apply(sampler, ctypes.byref(every))
        return int(self._row["id"][self._row["logit"].argmax()])

    def close(self) -> None:
        C.llama_sampler_free(self._first)


class Engine:
    """One llama.cpp context with the shared prompt in sequence 0, and a batch in numpy arrays."""

    def __init__(self, model: Model, config: LlamaTier, shared: Tokens, longest: int) -> None:
        """Evaluate the shared prompt; `longest` is the most tokens a candidate adds to it.

        Raises:
            TierError: the context does not fit the settings or the memory.
        """
        self._model = model
        self._shared = shared
        self._batch_size = batch_size(config)
        self._sequences = sequences(config)
        self.cells = cells(config, len(shared), longest)
        self._context = C.llama_init_from_model(model.pointer, self._parameters(config))
        if not self._context:
            raise TierError(
                f"no memory for a context of {self.cells + len(shared):,} tokens; "
                "lower max_candidate_tokens, context_tokens or active"
            )
        self._memory = C.llama_get_memory(self._context)
        self._make_batch(self._batch_size)
        self._filled = 0
        self._members: list[tuple[Prepared, int]] = []
        self._free = deque(range(1, self._sequences))
        began = time.perf_counter()
        for start in range(0, len(shared), self._batch_size):
            self._put(shared[start : start + self._batch_size], start, 0)
            self.decode()
        self._prefill_seconds = time.perf_counter() - began

    @property
    def full(self) -> bool:
        return self._filled == self._batch_size

    @property
    def empty(self) -> bool:
        return self._filled == 0

    @property
    def free(self) -> int:
        """How many candidates can be forked now."""
        return len(self._free)

    @property
    def crowded(self) -> bool:
        """Whether no further candidate can be forked before one is dropped."""
        return not self._free

    def measure(self) -> dict[str, float]:
        """Tokens a second: `prefill` over the shared prompt, `decode` of one sequence."""
        probe = Prepared(0, self._shared[:1], None)
        self.fork(probe)
        steps, seconds = 8, 0.0
        for step in range(steps):
            self._put(probe.tokens, len(self._shared) + step, probe.sequence, answer=True)
            seconds += self.decode()
        self.drop(probe)
        return {
            "prefill": len(self._shared) / max(self._prefill_seconds, 1e-9),
            "decode": steps / max(seconds, 1e-9),
        }

    def fork(self, candidate: Prepared) -> None:
        """Give a candidate a sequence that already holds the shared prompt."""
        candidate.sequence = self._free.popleft()
        C.llama_memory_seq_cp(self._memory, 0, candidate.sequence, -1, -1)

    def branch(self, candidate: Prepared, tokens: Tokens) -> Prepared:
        """These tokens after a candidate's, which were decoded, in a sequence of their own."""
        after = Prepared(candidate.id, tokens, None, before=len(candidate.tokens))
        after.sequence = self._free.popleft()
        C.llama_memory_seq_cp(self._memory, candidate.sequence, after.sequence, -1, -1)
        return after

    def room(self, tokens: int) -> bool:
        """Whether so many fit into the batch."""
        return tokens <= self._batch_size - self._filled

    def fill(self, candidate: Prepared) -> int | None:
        """Put as many of a candidate's tokens into the batch as fit; the last one's row, if in."""
        tokens = candidate.tokens[candidate.sent : candidate.sent + self._batch_size - self._filled]
        start = len(self._shared) + candidate.before + candidate.sent
        candidate.sent += len(tokens)
        last = candidate.sent == len(candidate.tokens)
        row = self._put(tokens, start, candidate.sequence, answer=last)
        self._members.append((candidate, len(tokens)))
        return row if last else None

    def go_on(self, candidate: Prepared, token: int, written: int) -> int:
        """Put the token that follows a candidate's prompt and `written` tokens of its reply."""
        start = len(self._shared) + len(candidate.tokens) + written
        self._members.append((candidate, 1))
        return self._put(np.array([token], np.int32), start, candidate.sequence, answer=True)

    def decode(self) -> float:
        """Evaluate the batch and empty it; return the seconds, shared out over its candidates."""
        self._llama_batch.n_tokens = self._filled
        began = time.perf_counter()
        code = C.llama_decode(self._context, self._llama_batch)
        if not code:
            C.llama_synchronize(self._context)  # a GPU is still at work when the call returns
        seconds = time.perf_counter() - began
        if code:
            raise RuntimeError(f"llama_decode gave {code}")
        for candidate, tokens in self._members:
            candidate.seconds += seconds * tokens / self._filled
        self._members.clear()
        self._filled = 0
        return seconds

    def logits(self, row: int) -> NDArray[np.float32]:
        """(vocabulary,) of a row of the last batch; overwritten by the next."""
        pointer = C.llama_get_logits_ith(self._context, row)
        if not pointer:
            raise RuntimeError(f"llama.cpp kept no logits for row {row}")
        return np.ctypeslib.as_array(pointer, shape=(self._model.size,))

    def drop(self, candidate: Prepared) -> None:
        """Forget a candidate and keep the shared prompt."""
        C.llama_memory_seq_rm(self._memory, candidate.sequence, -1, -1)
        self._free.append(candidate.sequence)

    def close(self) -> None:
        if self._context:
            C.llama_free(self._context)
            self._context = None

    def _put(self, tokens: Tokens, start: int, sequence: int, *, answer: bool = False) -> int:
        rows = slice(self._filled, self._filled + len(tokens))
        self._token[rows] = tokens
        self._position[rows] = np.arange(start, start + len(tokens))
        self._sequence[rows] = sequence
        self._wanted[rows] = 0
        self._filled += len(tokens)
        self._wanted[self._filled - 1] = answer
        return self._filled - 1

    def _parameters(self, config: LlamaTier) -> Any:
        parameters = C.llama_context_default_params()
        parameters.n_ctx = len(self._shared) + self.cells
        # A wider batch than what is evaluated at once would only widen the attention.
        parameters.n_batch = parameters.n_ubatch = self._batch_size
        parameters.n_seq_max = self._sequences
        # One logit row a sequence and not one a token: 31 MiB instead of 500 for a Gemma.
        parameters.n_outputs_max = self._sequences
        parameters.n_threads = parameters.n_threads_batch = config.threads or max(1, int(cores()))
        parameters.kv_unified = True
        parameters.swa_full = True  # a smaller window cache loses the prefix without a word
        parameters.type_k = parameters.type_v = KV_TYPES[config.kv_type]
        parameters.flash_attn_type = (
            C.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if config.flash_attn
            else C.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        return parameters

    def _make_batch(self, size: int) -> None:
        """A llama_batch over numpy memory, filled by slices and not token by token."""
        self._token = np.zeros(size, np.int32)
        self._position = np.zeros(size, np.int32)
        self._sequence = np.zeros(size, np.int32)
        self._one_each = np.ones(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        step = self._sequence.itemsize
        self._rows = self._sequence.ctypes.data + step * np.arange(size, dtype=np.uint64)
        rows = ctypes.cast(self._rows.ctypes.data, ctypes.POINTER(ctypes.POINTER(C.llama_seq_id)))
        self._llama_batch = C.llama_batch(
            0,
            _pointer(self._token, C.llama_token),
            None,
            _pointer(self._position, C.llama_pos),
            _pointer(self._one_each, ctypes.c_int32),
            rows,
            _pointer(self._wanted, ctypes.c_int8),
        )


class Log:
    """Collects what llama.cpp says instead of printing it, for the sentence of an error."""

    _kept: Any = None  # ctypes callbacks die with their last reference

    def __init__(self) -> None:
        self._lines: list[str] = []

        @C.llama_log_callback  # type: ignore[untyped-decorator]
        def collect(level: int, text: bytes, _: Any) -> None:
            if level in (WARNING, ERROR):
                self._lines.append(text.decode("utf-8", "replace").strip())

        Log._kept = collect
        C.llama_log_set(collect, None)

    def reason(self) -> str:
        """The first line that llama.cpp said of an error: later ones only repeat that it failed."""
        lines = [line.rpartition("error loading model: ")[2] for line in self._lines if line]
        return lines[0] if lines else "it gave no reason"


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
