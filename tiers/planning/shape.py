"""The shape of a model: read from a GGUF file's header, or known of a preset.

The header is read here, because the reader of the `gguf` package makes an object of each piece of
the vocabulary: 10 s for a Gemma's 262,144, where this one skips them in a tenth of a second.
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from tiers.types import TierError

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
TABLES = ("token_embd.weight", "output.weight", "position_embd.weight")
KEPT = 1024
"""Longer arrays are vocabularies, and skipped; shorter ones hold a number for each layer."""
QUANTIZATIONS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL", 30: "IQ4_XS", 32: "BF16",
}  # fmt: skip
"""llama.cpp's numbers of file types, `llama_ftype`."""


class Shape(NamedTuple):
    """What of a model decides how much memory and how many operations it takes."""

    name: str
    architecture: str
    quantization: str
    weights: int
    """Bytes."""
    parameters: int
    matrices: int
    """Parameters that every token is multiplied with: without the vocabulary's tables."""
    layers: int
    width: int
    feed_forward: int
    """The widest layer's."""
    queries: int
    """Numbers of all query heads of a layer."""
    heads: int
    cell: int
    """Numbers of keys and values that a token leaves behind, over all layers."""
    vocabulary: int
    windows: bool = False
    """Whether some layers look at a window alone; their cells are kept apart."""
    trained_context: int | None = None

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part is a product of two, which most architectures have."""
        return self.architecture not in ("gpt2", "gptneox", "falcon", "bloom", "mpt", "starcoder2")


PRESET_SHAPES = {
    "gemma-2-2b": Shape(
        "gemma-2-2b", "gemma2", "", 0, parameters=2_614_341_888, matrices=2_024_517_888, layers=26,
        width=2304, feed_forward=9216, queries=2048, heads=8, cell=26 * 2 * 4 * 256,
        vocabulary=256_000, windows=True, trained_context=8192,
    ),
    "gemma-2-9b": Shape(
        "gemma-2-9b", "gemma2", "", 0, parameters=9_241_705_984, matrices=8_324_201_984, layers=42,
        width=3584, feed_forward=14336, queries=4096, heads=16, cell=42 * 2 * 8 * 256,
        vocabulary=256_000, windows=True, trained_context=8192,
    ),
    "gemma-3-12b": Shape(
        "gemma-3-12b", "gemma3", "", 0, parameters=11_765_788_416, matrices=10_759_155_456,
        layers=48, width=3840, feed_forward=15360, queries=4096, heads=16, cell=48 * 2 * 8 * 256,
        vocabulary=262_144, windows=True, trained_context=131_072,
    ),
}  # fmt: skip
"""From the models' published configurations; the bytes follow from the quantization."""
BITS = {"Q4_K_M": (4.81, 6.5625), "Q8_0": (8.5, 8.5), "F16": (16.0, 16.0)}
"""Bits of a weight, and of one of the embeddings, which are the output too. Q4_K_M is a mixture:
4.81 is what the published files of the presets come to."""


def preset_shape(name: str, quantization: str = "Q4_K_M") -> Shape:
    """A preset's shape with the bytes that its file has in a quantization, within 1 %."""
    shape = PRESET_SHAPES[name]
    embeddings = shape.parameters - shape.matrices
    bits, of_embeddings = BITS[quantization]
    weights = (shape.matrices * bits + embeddings * of_embeddings) / 8
    return shape._replace(quantization=quantization, weights=round(weights))


def read_shape(path: Path) -> Shape:
    """The shape of a GGUF file, from its header; no weight is read.

    Raises:
        TierError: it is no GGUF file, or is cut, or its header lacks what a model needs.
    """
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise TierError(f"'{path}' is no GGUF file: it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Header(data)
            try:
                facts, tensors = header.read()
            except (struct.error, IndexError) as error:
                raise TierError(
                    f"'{path}' is cut or damaged: it has {len(data):,} bytes, and its header "
                    f"ends amid {header.reading}; fetch the file again"
                ) from error
            weights = len(data) - header.place
    if tensors and max(one.offset for one in tensors) >= weights:
        raise TierError(
            f"'{path}' is cut: it has {weights:,} bytes of weights, and tensor "
            f"'{max(tensors, key=lambda one: one.offset).name}' begins after them; fetch it again"
        )
    return _shape(path, facts, tensors, weights)


class _Tensor(NamedTuple):
    name: str
    sizes: tuple[int, ...]
    offset: int


class _Header:
    """A walk through a header; `place` is where it stands."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.place = 4
        self.reading = "its first numbers"

    def read(self) -> tuple[dict[str, Any], list[_Tensor]]:
        """The facts without vocabularies, and the tensors; then `place` is where weights begin.

        Raises:
            struct.error: the file ends before.
            IndexError: likewise, or a number means nothing.
        """
        self._number("<I")  # the version: 2 and 3 are written alike, and 1 was for weeks
        tensors, entries = self._number("<Q"), self._number("<Q")
        facts: dict[str, Any] = {}
        for i in range(entries):
            self.reading = f"entry {i + 1:,} of {entries:,}"
            name = self._text()
            facts[name] = self._value(self._number("<I"))
        found = []
        for i in range(tensors):
            self.reading = f"tensor {i + 1:,} of {tensors:,}"
            name, dimensions = self._text(), self._number("<I")
            if dimensions > 4:
                raise IndexError(dimensions)
            sizes = tuple(self._number("<Q") for _ in range(dimensions))
            self._number("<I")
            found.append(_Tensor(name, sizes, self._number("<Q")))
        step = int(facts.get("general.alignment", 32)) or 32
        self.place = -(-self.place // step) * step
        return facts, found

    def _number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(kind, self._data, self.place)
        self.place += struct.calcsize(kind)
        return value

    def _text(self) -> str:
        length = self._number("<Q")
        self.place += length
        if self.place > len(self._data):
            raise IndexError(length)
        return self._data[self.place - length : self.place].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            return self._number(_number_kind(kind))
        of, count = self._number("<I"), self._number("<Q")
        if of == STRING:
            self._skip_texts(count)
            return None
        form = _number_kind(of)
        if count <= KEPT:
            return [self._number(form) for _ in range(count)]
        self.place += count * struct.calcsize(form)
        return None

    def _skip_texts(self, count: int) -> None:
        data, place, length_at = self._data, self.place, struct.Struct("<Q").unpack_from
        for _ in range(count):
            place += 8 + length_at(data, place)[0]
        self.place = place


def _number_kind(kind: int) -> str:
    if kind not in _NUMBERS:
        raise IndexError(kind)
    return _NUMBERS[kind]


def _shape(path: Path, facts: dict[str, Any], tensors: list[_Tensor], weights: int) -> Shape:
    kind = facts.get("general.architecture")

    def fact(name: str, default: Any = None) -> Any:
        value = facts.get(f"{kind}.{name}", default)
        if value is None:
            raise TierError(f"'{path}' lacks the entry {kind}.{name}; it is no language model")
        return value

    layers, width, heads = (
        fact("block_count"),
        fact("embedding_length"),
        fact("attention.head_count"),
    )
    most = max(heads) if isinstance(heads, list) else heads
    key = fact("attention.key_length", width // max(most, 1))
    value = fact("attention.value_length", key)
    kv_heads = fact("attention.head_count_kv", heads)
    of_all = sum(kv_heads) if isinstance(kv_heads, list) else layers * kv_heads
    wide = fact("feed_forward_length")
    parameters = sum(_product(one.sizes) for one in tensors)
    bits = 8 * weights / max(parameters, 1)
    embeddings = next((one for one in tensors if one.name == "token_embd.weight"), None)
    return Shape(
        name=path.name,
        architecture=str(kind),
        quantization=QUANTIZATIONS.get(facts.get("general.file_type", -1), f"{bits:.1f} bits"),
        weights=weights,
        parameters=parameters,
        matrices=sum(_product(one.sizes) for one in tensors if one.name not in TABLES),
        layers=layers,
        width=width,
        feed_forward=max(wide) if isinstance(wide, list) else wide,
        queries=most * key,
        heads=most,
        cell=of_all * (key + value),
        vocabulary=embeddings.sizes[-1] if embeddings else fact("vocab_size", 0),
        windows=f"{kind}.attention.sliding_window" in facts,
        trained_context=facts.get(f"{kind}.context_length"),
    )


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
