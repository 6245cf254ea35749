"""What a screen file may do that somebody else wrote: judge the files of its own folder, no more.

A screen file is passed around like a document. One that lies in a folder which its reader trusts
may run code, and read and write elsewhere.
"""

import os
import sys
from collections.abc import Iterator
from glob import glob
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from tiers.screenfile.tiers import PythonTier, VllmTier

if TYPE_CHECKING:
    from tiers.screenfile.file import Screen

TRUSTED_FOLDERS = "TAMIS_TRUSTED_FOLDERS"
"""The variable that names folders whose screen files and code are the reader's own, with a colon
between two. Never read from `.env`, which may have come with the screen file."""
EVERYWHERE = os.sep

Place = tuple[str | int, ...]

_HARMLESS = frozenset(
    {
        "block_size", "cpu_offload_gb", "data_parallel_size", "dtype", "enable_prefix_caching",
        "enforce_eager", "gpu_memory_utilization", "kv_cache_dtype", "max_model_len",
        "max_num_batched_tokens", "max_num_seqs", "pipeline_parallel_size", "quantization", "seed",
        "swap_space", "tensor_parallel_size",
    }
)  # fmt: skip
"""Options of vLLM that make it run no code of a model's or of anybody else's."""


def trusted(path: Path) -> bool:
    """Whether a file lies in a trusted folder, wherever links to it lie."""
    real = path.resolve()
    return any(real.is_relative_to(folder) for folder in _trusted_folders())


def _trusted_folders() -> Iterator[Path]:
    for each in os.environ.get(TRUSTED_FOLDERS, "").split(os.pathsep):
        folder = Path(each.strip()).expanduser()
        if folder.is_absolute():  # '.' would be wherever a command happens to be started
            yield folder.resolve()


def overreach(screen: "Screen", folder: Path) -> Iterator[tuple[Place, str]]:
    """What a screen would do that only a trusted one may: the place in its file, and what.

    Args:
        screen: as it stands in its file.
        folder: the file's.
    """
    source = screen.candidates.source
    if not isinstance(source, str):
        yield ("candidates", "from"), f"asks the database of {source.url_variable}"
    elif "://" in source or "::" in source:
        yield ("candidates", "from"), f"reads {source}, with your rights"
    elif outside := _outside(folder, source):
        yield ("candidates", "from"), f"reads {outside}, outside the screen file's folder"
    if (after := screen.after) is not None:
        if after.table is not None:
            yield ("after", "table"), f"writes into the database of {after.url_variable}"
        elif outside := _outside(folder, str(after.results)):
            yield ("after", "results"), f"writes {outside}, outside the screen file's folder"
    for position, tier in enumerate(screen.tiers):
        if isinstance(tier, PythonTier) and not tier.code_allowed:
            yield ("tiers", position), f"runs code, the class {tier.path}"
        elif isinstance(tier, VllmTier) and (odd := sorted(tier.options.keys() - _HARMLESS)):
            yield ("tiers", position, "options"), f"sets '{odd[0]}', by which vLLM may run code"


def _outside(folder: Path, name: str) -> str | None:
    """The first file outside of the folder that a name or a pattern leads to; None for none."""
    written = Path(os.path.normpath(folder / name))
    if not written.is_relative_to(folder):
        return str(written)
    found = [written.parent, written, *map(Path, glob(str(written), recursive=True))]  # noqa: PTH207
    leads = (path.resolve() for path in found)
    return next((str(path) for path in leads if not path.is_relative_to(folder)), None)


def advice(folder: Path | str) -> str:
    """What to write where a screen file is one's own."""
    return (
        "a screen file from somebody else may not; if you trust this one, write --allow-code, or "
        f"for all files of its folder set {TRUSTED_FOLDERS}={folder} in the environment"
    )


def code_of(config: PythonTier) -> Path:
    """The file of a tier's module, or the package's that holds it; nothing is imported."""
    module = config.path.partition(":")[0].partition(".")[0]
    # As the import will find it: the tier's folder goes first.
    spec = PathFinder.find_spec(module, [config.folder, *sys.path])
    if spec is None:
        return Path(config.folder)
    places = [spec.origin] if spec.has_location and spec.origin else []
    places += list(spec.submodule_search_locations or ())
    elsewhere = [place for place in places if not trusted(Path(place))]
    return Path((elsewhere or places or [config.folder])[0])
