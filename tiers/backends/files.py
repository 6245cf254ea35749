"""Where a model's file comes from: a path, a preset, or the Hugging Face hub; and its digest."""

import hashlib
import json
import os
from pathlib import Path

from tiers.screenfile.tiers import HubModel
from tiers.types import MissingExtra, TierError

PRESETS = {
    "gemma-2-2b": "bartowski/gemma-2-2b-it-GGUF/gemma-2-2b-it-Q4_K_M.gguf",
    "gemma-2-9b": "bartowski/gemma-2-9b-it-GGUF/gemma-2-9b-it-Q4_K_M.gguf",
    "gemma-3-12b": "ggml-org/gemma-3-12b-it-GGUF/gemma-3-12b-it-Q4_K_M.gguf",
}
"""Files on the hub. The hub publishes the SHA-256 of each, and a fetched file must match it."""

SMALL = 64 << 20  # hashed in a blink, so not worth remembering


def model_file(model: str | HubModel) -> Path:
    """The model's file on this machine, fetched from the hub the first time.

    Raises:
        TierError: there is no such file, or it could not be fetched or verified.
        MissingExtra: it must be fetched and huggingface_hub is not installed.
    """
    if isinstance(model, HubModel):
        return _from_hub(model.hub)
    if model in PRESETS:
        return _from_hub(PRESETS[model])
    path = Path(model).expanduser()
    if not path.is_file():
        raise TierError(
            f"model '{model}' is neither a file nor a preset ({', '.join(PRESETS)}); "
            "write its path, relative to the screen file, or hub: owner/repository/file.gguf"
        )
    return path


def kept_file(model: str | HubModel) -> Path | None:
    """The model's file if it is on this machine already; nothing is fetched for the answer."""
    name = model.hub if isinstance(model, HubModel) else PRESETS.get(model)
    if name is None:
        path = Path(str(model)).expanduser()
        return path if path.is_file() else None
    owner, repository, file = name.split("/", 2)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / (
        "huggingface"
    )
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    snapshots = hub / f"models--{owner}--{repository}" / "snapshots"
    return next((one for one in sorted(snapshots.glob(f"*/{file}")) if one.is_file()), None)


def file_digest(path: Path) -> str:
    """SHA-256 of a file; of a large one remembered as long as its size and time stay the same."""
    stat = path.stat()
    if stat.st_size < SMALL:
        return _sha256(path)
    memory = _cache_folder() / "digests.json"
    known: dict[str, str] = json.loads(memory.read_text()) if memory.exists() else {}
    mark = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
    if mark not in known:
        known[mark] = _sha256(path)
        memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = memory.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(known))
        fresh.replace(memory)
    return known[mark]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tamis"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(name: str) -> Path:
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtra(
            f"model '{name}' is fetched by huggingface_hub; run: pip install -e '.[hub]'"
        ) from error
    owner, repository, file = name.split("/", 2)
    try:
        path = Path(hub.hf_hub_download(f"{owner}/{repository}", file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TierError(
            f"model '{name}' could not be fetched: {str(error).splitlines()[0]}; "
            "check the name and the network, or download the file and write its path"
        ) from error
    # The hub's cache stores a large file under its SHA-256 and links the readable name to it.
    published = path.resolve().name
    if len(published) == 64 and file_digest(path) != published:
        path.resolve().unlink()
        raise TierError(f"'{name}' arrived damaged and was removed; run again")
    return path
