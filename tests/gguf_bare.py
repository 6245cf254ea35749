"""GGUF files of real widths without weights: headers, and holes that read as zeros.

llama.cpp loads them and makes its buffers, which is all that a test of memory needs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np


class Bare(NamedTuple):
    architecture: str
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    head: int
    layers: int = 2
    window: int | None = None


BARE = {
    "llama": Bare("llama", 4096, 32, 8, 14336, 32000, 128),
    "gemma2": Bare("gemma2", 2304, 8, 4, 9216, 64000, 256, window=4096),
    "gemma3": Bare("gemma3", 2560, 8, 4, 10240, 32000, 256, layers=6, window=1024),
    "qwen2": Bare("qwen2", 3584, 28, 4, 18944, 32000, 128),
    "qwen3": Bare("qwen3", 2560, 32, 8, 9728, 64000, 128),
    "phi3": Bare("phi3", 3072, 32, 32, 8192, 32064, 96),
    "gpt2": Bare("gpt2", 1600, 25, 25, 6400, 50257, 64),
}
"""Llama 8B, Gemma 2 2B, Gemma 3 4B, Qwen2 7B, Qwen3 4B, Phi 3 mini, GPT-2 XL: fewer layers and words.

Buffers of one call do not depend on the number of layers, but the last one has few rows.
"""


def write_bare(path: Path, bare: Bare) -> Path:
    """The header of a model, and a hole where its F16 weights would be."""
    writer = gguf.GGUFWriter(path, bare.architecture)
    writer.add_file_type(1)
    writer.add_context_length(8192)
    writer.add_embedding_length(bare.width)
    writer.add_block_count(bare.layers)
    writer.add_feed_forward_length(bare.feed_forward)
    writer.add_head_count(bare.heads)
    writer.add_head_count_kv(bare.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_layer_norm_eps(1e-5)
    writer.add_key_length(bare.head)
    writer.add_value_length(bare.head)
    writer.add_vocab_size(bare.vocabulary)
    writer.add_rope_dimension_count(bare.head)
    if bare.window:
        writer.add_sliding_window(bare.window)
    writer.add_tokenizer_model("no_vocab")
    hole = 0
    for name, *sizes in tensors(bare):
        matrix = len(sizes) > 1 and name != "position_embd.weight"
        dtype = np.dtype(np.float16 if matrix else np.float32)
        size = int(np.prod(sizes)) * dtype.itemsize
        writer.add_tensor_info(name, sizes, dtype, size)
        hole += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + hole)
    return path


def tensors(bare: Bare) -> Iterator[tuple[str, *tuple[int, ...]]]:
    """Names and sizes, rows first."""
    width, kind = bare.width, bare.architecture
    gemma = kind.startswith("gemma")
    yield "token_embd.weight", bare.vocabulary, width
    if kind == "gpt2":
        yield "position_embd.weight", 8192, width
    for layer in range(bare.layers):
        yield from block_of(bare, f"blk.{layer}.")
    yield "output_norm.weight", width
    if kind == "gpt2":
        yield "output_norm.bias", width
    if not gemma:
        yield "output.weight", bare.vocabulary, width


def block_of(bare: Bare, block: str) -> Iterator[tuple[str, *tuple[int, ...]]]:
    """The tensors of one layer."""
    width, queries, keys = bare.width, bare.heads * bare.head, bare.kv_heads * bare.head
    kind, wide = bare.architecture, bare.feed_forward
    yield block + "attn_norm.weight", width
    yield block + "ffn_norm.weight", width
    if kind in ("phi3", "gpt2"):
        yield block + "attn_qkv.weight", queries + 2 * keys, width
    else:
        yield block + "attn_q.weight", queries, width
        yield block + "attn_k.weight", keys, width
        yield block + "attn_v.weight", keys, width
    yield block + "attn_output.weight", width, queries
    yield block + "ffn_up.weight", 2 * wide if kind == "phi3" else wide, width
    yield block + "ffn_down.weight", width, wide
    if kind not in ("phi3", "gpt2"):
        yield block + "ffn_gate.weight", wide, width
    if kind.startswith("gemma"):
        yield block + "post_attention_norm.weight", width
        yield block + "post_ffw_norm.weight", width
    if kind in ("gemma3", "qwen3"):
        yield block + "attn_q_norm.weight", bare.head
        yield block + "attn_k_norm.weight", bare.head
    if kind == "qwen2":
        yield block + "attn_q.bias", queries
        yield block + "attn_k.bias", keys
        yield block + "attn_v.bias", keys
    if kind == "gpt2":
        yield block + "attn_norm.bias", width
        yield block + "ffn_norm.bias", width
        yield block + "attn_qkv.bias", queries + 2 * keys
        yield block + "attn_output.bias", width
        yield block + "ffn_up.bias", wide
        yield block + "ffn_down.bias", width
