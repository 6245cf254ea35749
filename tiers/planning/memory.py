"""How much memory a GGUF model takes in llama.cpp, before it is loaded. Pure arithmetic.

The formulas follow what llama.cpp allocates for a decoder without experts, and were held against
its own log lines for six architectures (docs/machine.md); on GPUs they were not measured.
"""

import math
from typing import NamedTuple

from tiers.backends.llama.sizes import batch_size, cells, sequences
from tiers.backends.tokens import prompt_around, questions
from tiers.planning.shape import Shape
from tiers.screenfile.tiers import LlamaTier
from tiers.tier import Job, config_of

CHARACTERS_PER_TOKEN = 3
"""Fewer than most texts have, so that the shared prompt is guessed too long rather than short."""
TAIL_TOKENS = 32
"""The question and the chat format after a candidate, about."""
CELL_STEP = 256
"""llama.cpp rounds the cells of a context up to a multiple."""
BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
ENGINE_BYTES = 200 << 20
"""Python, llama.cpp's code, the vocabulary and the threads' stacks: what the child has beside."""


class Context(NamedTuple):
    """A llama.cpp context as the backend asks for it."""

    cells: int
    batch: int
    sequences: int
    kv_type: str = "f16"
    flash_attn: bool = True


class Need(NamedTuple):
    """Bytes that a model takes, by what llama.cpp calls its buffers."""

    weights: int
    cache: int
    compute: int
    """Of one call, and the rows of logits that are kept of it."""

    @property
    def total(self) -> int:
        """With the engine's own.

        Weights that are laid out anew for the processor (CPU_REPACK) count once: the file's
        pages, from which they came, are the system's to drop.
        """
        return self.weights + self.cache + self.compute + ENGINE_BYTES


def shared_tokens(job: Job) -> int:
    """About how many tokens all candidates of a tier share, by its characters.

    Raises:
        TypeError: no model of ours reads the tier's prompt.
    """
    config = config_of(job, LlamaTier)
    prompt = prompt_around(job, config, None, next(iter(questions(config))))
    return len(prompt.head) // CHARACTERS_PER_TOKEN + 1


def context_of(job: Job, trained: int | None = None) -> Context:
    """The context that a tier gets, by the length of its prompt; no tokenizer is loaded.

    Args:
        job: of a llama tier.
        trained: the longest context that the model was trained for, if known.

    Raises:
        TierError: `context_tokens` is too small.
    """
    config = config_of(job, LlamaTier)
    shared = shared_tokens(job)
    longest = config.max_candidate_tokens
    if trained is not None:
        longest = max(1, min(longest, trained - shared))
    return Context(
        shared + cells(config, shared, longest + TAIL_TOKENS),
        batch_size(config),
        sequences(config),
        config.kv_type,
        config.flash_attn,
    )


def need(shape: Shape, context: Context) -> Need:
    """What llama.cpp allocates for a model in a context, with the window's cache kept whole.

    Compute: the widest moment of one layer, or the logits. A call of u tokens over n cells holds
    of the feed-forward part 3 F u numbers (1 where it is not gated) and of the residual stream
    4 E u, give or take one E u by where llama.cpp finds room. Without flash attention it may hold
    more of the scores: heads n u, and queries and residual. Masks are u n numbers, of half the
    size with flash attention, and two where some layers have windows.
    """
    n = math.ceil(context.cells / CELL_STEP) * CELL_STEP
    u = min(context.batch, n)
    masks = (2 if shape.windows else 1) * u * n
    mask_bytes = masks * (2 if context.flash_attn else 4)
    wide = (3 if shape.gated else 1) * shape.feed_forward + 4 * shape.width
    moments = [
        4 * u * wide + mask_bytes,
        4 * (context.sequences * shape.vocabulary + u * shape.width) + mask_bytes,
    ]
    if not context.flash_attn:
        beside = 3 * shape.queries + 4 * shape.width
        moments.append(4 * u * (shape.heads * n + beside) + mask_bytes)
    logits = 4 * context.sequences * shape.vocabulary
    return Need(
        shape.weights,
        round(shape.cell * n * BYTES[context.kv_type]),
        max(moments) + logits,
    )
