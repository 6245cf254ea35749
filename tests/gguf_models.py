"""Random models of real architectures, made on the spot: real llama.cpp graphs, no download.

The tokenizer is trained on the standard library's own source text.
"""

import io
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import sentencepiece

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else 'user' }}\n"
    "{{ message.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


class Shape(NamedTuple):
    architecture: str
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 384
    vocabulary: int = 4000
    window: int = 64
    head: int | None = None
    """Numbers of one head; None for width / heads."""

    @property
    def head_size(self) -> int:
        return self.head or self.width // self.heads


class Weight(NamedTuple):
    """A tensor to draw: (rows, columns); without a gain, a norm's ones of (columns,)."""

    name: str
    rows: int
    columns: int
    gain: float | None = 1.0


SHAPES = {
    "llama": Shape("llama"),
    "gemma2": Shape("gemma2"),
    "gemma3": Shape("gemma3", layers=6),
    "llama-100m": Shape(
        "llama", width=768, layers=12, heads=12, kv_heads=4, feed_forward=2304, vocabulary=32000
    ),
    "llama-1500m": Shape(
        "llama", width=2048, layers=24, heads=16, kv_heads=8, feed_forward=8192, vocabulary=32000
    ),
    "gemma-2-2b": Shape("gemma2", 2304, 26, 8, 4, 9216, 256_000, window=4096, head=256),
    "gemma-2-9b": Shape("gemma2", 3584, 42, 16, 8, 14336, 256_000, window=4096, head=256),
    "gemma-3-12b": Shape("gemma3", 3840, 48, 16, 8, 15360, 262_144, window=1024, head=256),
    "gemma-small": Shape("gemma2", 256, 4, 4, 2, 768, 8000),
    "gemma-medium": Shape("gemma2", 512, 4, 4, 2, 1536, 8000),
    "gemma-large": Shape("gemma3", 512, 8, 4, 2, 1536, 8000),
}

MOST_TRAINED = 32_000
"""Pieces that the tokenizer is trained for; a larger vocabulary ends in pieces that no text has."""


@cache
def _vocabulary(size: int) -> tuple[list[bytes], list[float], list[gguf.TokenType]]:
    lines: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text("utf-8", "ignore")
        lines += [line.strip() for line in text.splitlines() if 8 < len(line.strip()) < 400]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[:60_000]),
        model_writer=model,
        vocab_size=min(size, MOST_TRAINED),
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        split_digits=True,
        minloglevel=2,
        control_symbols=["<start_of_turn>", "<end_of_turn>", "<|im_start|>"],
        user_defined_symbols=["yes", "no", "Yes", "No"],
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = gguf.TokenType
    count = pieces.get_piece_size()
    unused = size - count if size > MOST_TRAINED else 0
    return (
        [pieces.id_to_piece(i).encode() for i in range(count)]
        + [f"<unused{i}>".encode() for i in range(unused)],
        [pieces.get_score(i) for i in range(count)] + [-1e6] * unused,
        [
            kinds.UNKNOWN
            if pieces.is_unknown(i)
            else kinds.CONTROL
            if pieces.is_control(i)
            else kinds.BYTE
            if pieces.is_byte(i)
            else kinds.NORMAL
            for i in range(count)
        ]
        + [kinds.UNUSED] * unused,
    )


def write_model(path: Path, shape: Shape, *, seed: int = 0, wide: bool = False) -> Path:
    """Write a model with random weights: F16, or F32 where `wide`."""
    rng = np.random.default_rng(seed)
    dtype = np.float32 if wide else np.float16
    writer = writer_of(path, shape, 0 if wide else 1)
    for name, rows, columns, gain in weights_of(shape):
        if gain is None:
            writer.add_tensor(name, np.ones(columns, np.float32))
        else:
            values = rng.standard_normal((rows, columns), dtype=np.float32)
            writer.add_tensor(name, (values * np.float32(gain / columns**0.5)).astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def writer_of(path: Path, shape: Shape, file_type: int) -> gguf.GGUFWriter:
    """A file with all but its weights: what the architecture is told, and the tokenizer."""
    tokens, scores, kinds = _vocabulary(shape.vocabulary)
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(path.stem)
    writer.add_file_type(file_type)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_vocab_size(len(tokens))
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(shape.head_size)
    else:
        writer.add_sliding_window(shape.window)
    if shape.architecture == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(tokens.index(b"<end_of_turn>"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return writer


def pieces_of(shape: Shape) -> list[bytes]:
    """The texts of the tokens; a space is written as U+2581."""
    return _vocabulary(shape.vocabulary)[0]


def weights_of(shape: Shape) -> Iterator[Weight]:
    """All tensors of a model, in the order of the file."""
    width, head, gemma = shape.width, shape.head_size, shape.architecture != "llama"
    tokens = len(pieces_of(shape))
    yield Weight("token_embd.weight", tokens, width, 1.5 if gemma else width**0.5)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield Weight(block + "attn_norm.weight", 1, width, None)
        yield Weight(block + "attn_q.weight", shape.heads * head, width, 1.5)
        yield Weight(block + "attn_k.weight", shape.kv_heads * head, width, 1.5)
        yield Weight(block + "attn_v.weight", shape.kv_heads * head, width)
        yield Weight(block + "attn_output.weight", width, shape.heads * head)
        if gemma:
            yield Weight(block + "post_attention_norm.weight", 1, width, None)
            yield Weight(block + "post_ffw_norm.weight", 1, width, None)
        if shape.architecture == "gemma3":
            yield Weight(block + "attn_q_norm.weight", 1, head, None)
            yield Weight(block + "attn_k_norm.weight", 1, head, None)
        yield Weight(block + "ffn_norm.weight", 1, width, None)
        yield Weight(block + "ffn_gate.weight", shape.feed_forward, width)
        yield Weight(block + "ffn_up.weight", shape.feed_forward, width)
        yield Weight(block + "ffn_down.weight", width, shape.feed_forward)
    yield Weight("output_norm.weight", 1, width, None)
    if not gemma:
        yield Weight("output.weight", tokens, width, 1.5)


if __name__ == "__main__":
    write_model(Path(sys.argv[2]), SHAPES[sys.argv[1]])
