"""The memory that a model takes, against llama.cpp's own log; headers of files that are cut."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gguf_bare import BARE, write_bare
from tests.gguf_models import SHAPES, weights_of, write_model
from tiers.backends.llama.tier import Llama
from tiers.planning.memory import Context, context_of, need
from tiers.planning.shape import PRESET_SHAPES, preset_shape, read_shape
from tiers.screenfile.tiers import LlamaTier
from tiers.tier import Job
from tiers.types import TierError

MIB = 1 << 20
CONTEXTS = [
    Context(1000, 256, 65),
    Context(1000, 256, 65, flash_attn=False),
    Context(6000, 2048, 9, "q8_0"),
    Context(1000, 2048, 65),
    Context(6000, 2048, 65, flash_attn=False),
]
# As tiers.backends.llama.engine asks for it, in a process of its own.
LOADED = """
import json, sys
import llama_cpp.llama_cpp as C
from tiers.backends.llama.engine import KV_TYPES
lines = []
@C.llama_log_callback
def log(level, text, _):
    lines.append(text.decode("utf-8", "replace"))
C.llama_log_set(log, None)
C.llama_backend_init()
model = C.llama_model_load_from_file(sys.argv[1].encode(), C.llama_model_default_params())
assert model, "".join(lines)[-500:]
said = [list(lines)]
for cells, batch, sequences, kv_type, flash_attn in json.loads(sys.argv[2]):
    lines.clear()
    p = C.llama_context_default_params()
    p.n_ctx, p.n_batch, p.n_ubatch = cells, batch, batch
    p.n_seq_max = p.n_outputs_max = sequences
    p.n_threads = p.n_threads_batch = 1
    p.kv_unified = p.swa_full = True
    p.type_k = p.type_v = KV_TYPES[kv_type]
    p.flash_attn_type = int(flash_attn)
    context = C.llama_init_from_model(model, p)
    assert context, "".join(lines)[-500:]
    C.llama_free(context)
    said.append(list(lines))
print(json.dumps(said))
"""


def logged(model: Path, contexts: list[Context]) -> list[str]:
    """What llama.cpp says when it loads a model, then for each context."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(model), json.dumps(contexts)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return ["".join(lines) for lines in json.loads(done.stdout.splitlines()[-1])]


def megabytes(said: str, buffer: str) -> float:
    return sum(map(float, re.findall(rf"{buffer} buffer size = +([\d.]+) MiB", said)))


@pytest.mark.slow
@pytest.mark.parametrize("name", BARE)
def test_the_formula_is_what_llama_cpp_says_of_its_buffers(name: str, tmp_path: Path) -> None:
    """Promised are 150 MiB or 3 % in all; held are 48 MiB or 3 % for each kind of buffer."""
    path = write_bare(tmp_path / f"{name}.gguf", BARE[name])
    shape = read_shape(path)
    loaded, *said = logged(path, CONTEXTS)
    assert megabytes(loaded, "CPU_Mapped model") == pytest.approx(shape.weights / MIB, abs=1)
    for context, words in zip(CONTEXTS, said, strict=True):
        ours = need(shape, context)
        cache, compute = megabytes(words, "KV"), megabytes(words, "compute")
        assert cache == pytest.approx(ours.cache / MIB, abs=1), context
        real = compute + megabytes(words, "output")
        assert real == pytest.approx(ours.compute / MIB, rel=0.03, abs=48), context


@pytest.mark.slow
def test_the_context_is_the_one_that_the_engine_asks_for(tmp_path: Path) -> None:
    path = write_model(tmp_path / "llama.gguf", SHAPES["llama"])
    for settings in ({}, {"ask": "json", "active": 3}, {"max_candidate_tokens": 200}):
        config = LlamaTier.model_validate(
            {"name": "a", "backend": "llama", "model": str(path), "threads": 1} | settings
        )
        job = Job("The module imports nothing outside the standard library. " * 8, config)
        tier = Llama(job)
        real = len(tier.head) + tier._engine.cells
        sequences = tier._engine._sequences
        tier.close()
        guess = context_of(job, read_shape(path).trained_context)
        assert guess.sequences == sequences
        assert abs(guess.cells - real) < 150, settings


def test_the_shape_of_a_file_is_read_from_its_header(tmp_path: Path) -> None:
    made = SHAPES["gemma2"]
    shape = read_shape(write_model(tmp_path / "gemma2.gguf", made))
    numbers = [w.rows * w.columns for w in weights_of(made)]
    assert shape.parameters == sum(numbers)
    assert shape.matrices == sum(numbers) - numbers[0]
    assert (shape.architecture, shape.quantization, shape.layers) == ("gemma2", "F16", 4)
    assert shape.cell == made.layers * 2 * made.kv_heads * made.head_size
    assert shape.vocabulary == numbers[0] // made.width
    assert shape.windows
    assert 2 * shape.parameters <= shape.weights < 2.05 * shape.parameters


@pytest.mark.parametrize(
    ("keep", "said"),
    [(0, "no GGUF file"), (3, "no GGUF file"), (10, "amid its first numbers"), (400, "amid entry"),
     (-1000, "begins after them")],
)  # fmt: skip
def test_a_file_that_is_cut_is_told(keep: int, said: str, tmp_path: Path) -> None:
    path = write_bare(tmp_path / "cut.gguf", BARE["gpt2"])
    whole = path.stat().st_size
    end = keep if keep >= 0 else whole - 3 * BARE["gpt2"].vocabulary * BARE["gpt2"].width
    with path.open("r+b") as file:
        file.truncate(end)
    with pytest.raises(TierError, match=said):
        read_shape(path)


def test_metadata_cut_at_any_byte_is_never_a_traceback(tmp_path: Path) -> None:
    path = write_bare(tmp_path / "whole.gguf", BARE["gpt2"])
    with path.open("rb") as file:
        data = file.read(1000)
    cut = tmp_path / "cut.gguf"
    for end in range(0, 900, 7):
        cut.write_bytes(data[:end])
        with pytest.raises(TierError, match=r"cut\.gguf"):
            read_shape(cut)


def test_lengths_that_a_file_makes_up_are_told(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    for made_up in (b"\xff" * 40, b"\3\0\0\0" + b"\xff" * 16 + b"\1" * 64):
        path.write_bytes(b"GGUF" + made_up)
        with pytest.raises(TierError, match="cut or damaged"):
            read_shape(path)


def test_presets_have_the_sizes_of_their_published_files() -> None:
    published = {"gemma-2-2b": 1.709e9, "gemma-2-9b": 5.761e9, "gemma-3-12b": 7.301e9}
    for name in PRESET_SHAPES:
        assert preset_shape(name).weights == pytest.approx(published[name], rel=0.01)


def test_a_preset_is_the_shape_of_its_model(tmp_path: Path) -> None:
    """Against the shapes from which the benches write whole models."""
    for name, shape in PRESET_SHAPES.items():
        made: Any = SHAPES[name]
        assert shape.parameters == pytest.approx(
            made.vocabulary * made.width + shape.matrices, rel=1e-9
        )
        assert shape.layers == made.layers
        assert shape.queries == made.heads * made.head_size
        assert shape.cell == made.layers * 2 * made.kv_heads * made.head_size
        assert shape.feed_forward == made.feed_forward
