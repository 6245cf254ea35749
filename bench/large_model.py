"""Random gemmas of real sizes as GGUF files, written as fast as the disk takes them.

python -m bench.large_model SHAPE FILE [--kind f16 | q8_0 | q4_k]

A few hundred random rows are quantized and repeated, which costs a kernel what any rows do. The
models answer yes or no, so that a whole run goes through them.
"""

import argparse
import time
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray

from bench.common import finish
from tests.gguf_models import SHAPES, Shape, Weight, pieces_of, weights_of, writer_of

ROWS = 509
"""Distinct rows of a matrix; a prime, so that "yes" and "no" do not share one."""
EMBEDDING = "token_embd.weight"
FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_k": 15}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("shape", choices=SHAPES)
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--kind", choices=FILE_TYPES, default="q4_k")
    options = arguments.parse_args()
    began = time.perf_counter()
    write_large(options.file, SHAPES[options.shape], options.kind)
    finish(
        "large_model",
        {"shape": options.shape, "kind": options.kind, "seconds": time.perf_counter() - began,
         "bytes": options.file.stat().st_size},
    )  # fmt: skip


def write_large(path: Path, shape: Shape, kind: str) -> None:
    """Write a gemma; its embeddings, which are its output too, are Q8_0 where `kind` is Q4_K."""
    writer = writer_of(path, shape, FILE_TYPES[kind])
    weights = list(weights_of(shape))
    for weight in weights:
        stored = _stored(weight, kind)
        size = gguf.quant_shape_to_byte_shape((weight.rows, weight.columns), stored)
        if weight.gain is None:
            size = size[1:]
        writer.add_tensor_info(
            weight.name, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for weight in weights:
        writer.write_tensor_data(_values(weight, shape, _stored(weight, kind)))
    writer.close()


def _stored(weight: Weight, kind: str) -> gguf.GGMLQuantizationType:
    if weight.gain is None:
        return gguf.GGMLQuantizationType.F32
    if weight.name == EMBEDDING and kind == "q4_k":
        return gguf.GGMLQuantizationType.Q8_0
    return gguf.GGMLQuantizationType[kind.upper()]


def _values(weight: Weight, shape: Shape, stored: gguf.GGMLQuantizationType) -> NDArray[Any]:
    """A tensor as the file holds it: (rows, bytes of a row), or of a norm (columns,).

    A gemma has no bias, so its first dimension becomes one: every word sets it, no layer changes
    it, and the answers alone look at it.
    """
    if weight.gain is None:
        ones = np.ones(weight.columns, np.float32)
        if weight.name == "output_norm.weight":
            ones[0] = 2.0 * (shape.layers + 1) ** 0.5 * shape.width**0.5
        return ones
    scale = weight.gain / weight.columns**0.5
    # Layers that were all alike would add up, and drown the first dimension.
    block = np.roll(_block(scale, weight.columns, stored), zlib.crc32(weight.name.encode()), axis=0)
    found = np.resize(block, (weight.rows, block.shape[1]))
    if weight.name.endswith(("attn_output.weight", "ffn_down.weight")):
        found[0] = 0  # zero bytes are zeros in every kind
    if weight.name == EMBEDDING:
        answers = np.array(_answers(shape))
        rows = _normal(scale, weight.columns)[answers % ROWS]
        rows[:, 0] = 16 * scale
        found[answers] = quantize(rows, stored).view(np.uint8)
    return found


@cache
def _block(scale: float, columns: int, stored: gguf.GGMLQuantizationType) -> NDArray[np.uint8]:
    """(ROWS, bytes of a row)."""
    if stored == gguf.GGMLQuantizationType.Q4_K:
        return _random_q4_k(scale, columns)
    drawn = _normal(scale, columns)
    drawn[:, 0] = scale
    return quantize(drawn, stored).view(np.uint8)


def _answers(shape: Shape) -> list[int]:
    """Tokens that the tokenizer of the tests was told to keep whole."""
    pieces = pieces_of(shape)
    return [pieces.index(text) for text in (b"yes", b"no", b"Yes", b"No")]


def _normal(scale: float, columns: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(0).standard_normal((ROWS, columns), dtype=np.float32)
    return drawn * np.float32(scale)


def _random_q4_k(scale: float, columns: int) -> NDArray[np.uint8]:
    """Uniform weights of that standard deviation: every scale and minimum of a block is 32.

    Of 256 weights 144 bytes: d and dmin as halves, twelve bytes of scales and minima in 6 bits
    each, and 4 bits a weight; a weight is 32 (d q - dmin).
    """
    step = scale / (32 * 4.61)  # 4.61: the deviation of 0, ..., 15
    blocks = np.empty((ROWS, columns // 256, 144), np.uint8)
    blocks[..., :4] = np.array([step, 7.5 * step], np.float16).view(np.uint8)
    blocks[..., 4:16] = [160] * 8 + [0] * 4
    blocks[..., 16:] = np.random.default_rng(0).integers(0, 256, (*blocks.shape[:2], 128), np.uint8)
    return blocks.reshape(ROWS, -1)


if __name__ == "__main__":
    main()
