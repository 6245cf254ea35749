"""Which models fit this machine: those of a screen, and the presets in their quantizations."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tiers.backends.files import kept_file
from tiers.planning.machine import Machine
from tiers.planning.memory import Need, context_of, need
from tiers.planning.shape import BITS, PRESET_SHAPES, Shape, preset_shape, read_shape
from tiers.screenfile.tiers import HubModel, LlamaTier
from tiers.tier import Job
from tiers.types import TierError

BITS_THAT_HELP = 8.0
"""More bits a weight than these change no answers that matter."""


@dataclass(frozen=True)
class Fit:
    """A model in a tier's context, and whether it fits."""

    tier: str
    model: str
    quantization: str
    need: Need
    room: int
    """Bytes that are free for it."""
    where: str
    """`memory`, `GPU` or `GPU and memory`."""
    chosen: bool = False
    """Whether the screen file names it."""
    best: bool = False
    rank: tuple[int, float] = (0, 0.0)
    """Parameters, then bits a weight."""

    @property
    def fits(self) -> bool:
        return self.need.total <= self.room


def fits_of(jobs: Iterable[Job], machine: Machine) -> tuple[list[Fit], list[str]]:
    """The models of llama tiers, then the presets in the widest context; and what is wrong.

    The best is the one of most parameters that fits, then of most bits up to 8: at equal bytes
    more parameters in 4 bits answer better than fewer in more (Dettmers and Zettlemoyer, 2023,
    arXiv:2212.09720).
    """
    found: list[Fit] = []
    wrong: list[str] = []
    contexts: list[tuple[int, Job]] = []
    for job in jobs:
        if isinstance(job.config, LlamaTier):
            try:
                contexts.append((context_of(job).cells, job))
                found.append(_fit(job, machine, own_shape(job.config), chosen=True))
            except TierError as error:
                wrong.append(f"tier '{job.config.name}': {error}")
    if contexts:
        _, widest = max(contexts, key=lambda one: one[0])
        found += presets_for(widest, machine)
    return _with_best(found), wrong


def presets_for(job: Job, machine: Machine) -> list[Fit]:
    """Every preset in every quantization, in the context of a tier."""
    return _with_best(
        [
            replace(_fit(job, machine, preset_shape(name, quantization)), tier="any")
            for name in PRESET_SHAPES
            for quantization in BITS
        ]
    )


def _with_best(found: list[Fit]) -> list[Fit]:
    best = max((one for one in found if one.fits), key=lambda one: one.rank, default=None)
    return [replace(one, best=one is best) for one in found]


def own_shape(config: LlamaTier) -> Shape:
    """The shape of a tier's own model.

    Raises:
        TierError: the file is not there, or is cut, or nothing is known of it before it is fetched.
    """
    model, path = config.model, kept_file(config.model)
    if path is not None:
        return read_shape(path)
    if isinstance(model, HubModel):
        raise TierError(
            f"'{model.hub}' was not fetched yet, so that its size is not known; tamis check "
            "fetches it"
        )
    if model in PRESET_SHAPES:
        return preset_shape(model)
    raise TierError(
        f"model '{model}' is neither a file nor a preset ({', '.join(PRESET_SHAPES)}); "
        "write its path, relative to the screen file, or hub: owner/repository/file.gguf"
    )


def _fit(job: Job, machine: Machine, shape: Shape, *, chosen: bool = False) -> Fit:
    config = job.config
    assert isinstance(config, LlamaTier)  # noqa: S101 - for the type checker
    room, where = machine.free_memory, "memory"
    if config.n_gpu_layers and machine.gpus:
        cards = sum(gpu.free for gpu in machine.gpus)
        every = config.n_gpu_layers < 0 or config.n_gpu_layers > shape.layers
        room, where = (cards, "GPU") if every else (cards + room, "GPU and memory")
    bits = min(8 * shape.weights / max(shape.parameters, 1), BITS_THAT_HELP)
    context = context_of(job, shape.trained_context)
    return Fit(
        config.name, shape.name, shape.quantization, need(shape, context), room, where,
        chosen=chosen, rank=(shape.parameters, bits),
    )  # fmt: skip
