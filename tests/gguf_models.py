"""Random models of real architectures, made on the spot: real llama.cpp graphs, no download.

The tokenizer is trained on the standard library's own source text.
"""

import io
import sys
import sysconfig
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
}


@cache
def _vocabulary(size: int) -> tuple[list[bytes], list[float], list[int]]:
    lines: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text("utf-8", "ignore")
        lines += [line.strip() for line in text.splitlines() if 8 < len(line.strip()) < 400]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[:60_000]),
        model_writer=model,
        vocab_size=size,
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
    return (
        [pieces.id_to_piece(i).encode() for i in range(count)],
        [pieces.get_score(i) for i in range(count)],
        [
            kinds.UNKNOWN
            if pieces.is_unknown(i)
            else kinds.CONTROL
            if pieces.is_control(i)
            else kinds.BYTE
            if pieces.is_byte(i)
            else kinds.NORMAL
            for i in range(count)
        ],
    )


def write_model(path: Path, shape: Shape, *, seed: int = 0, wide: bool = False) -> Path:
    """Write a model with random weights: F16, or F32 where `wide`."""
    tokens, scores, kinds = _vocabulary(shape.vocabulary)
    head = shape.width // shape.heads
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(path.stem)
    writer.add_file_type(0 if wide else 1)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(len(tokens))
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(head)
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
    _add_weights(writer, shape, len(tokens), head, seed, np.float32 if wide else np.float16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_weights(
    writer: gguf.GGUFWriter, shape: Shape, tokens: int, head: int, seed: int, dtype: type
) -> None:
    rng = np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        writer.add_tensor(name, (values * np.float32(gain / columns**0.5)).astype(dtype))

    def ones(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    gemma = shape.architecture != "llama"
    matrix("token_embd.weight", tokens, shape.width, 1.5 if gemma else shape.width**0.5)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight", shape.width)
        matrix(block + "attn_q.weight", shape.heads * head, shape.width, 1.5)
        matrix(block + "attn_k.weight", shape.kv_heads * head, shape.width, 1.5)
        matrix(block + "attn_v.weight", shape.kv_heads * head, shape.width)
        matrix(block + "attn_output.weight", shape.width, shape.heads * head)
        if gemma:
            ones(block + "post_attention_norm.weight", shape.width)
            ones(block + "post_ffw_norm.weight", shape.width)
        if shape.architecture == "gemma3":
            ones(block + "attn_q_norm.weight", head)
            ones(block + "attn_k_norm.weight", head)
        ones(block + "ffn_norm.weight", shape.width)
        matrix(block + "ffn_gate.weight", shape.feed_forward, shape.width)
        matrix(block + "ffn_up.weight", shape.feed_forward, shape.width)
        matrix(block + "ffn_down.weight", shape.width, shape.feed_forward)
    ones("output_norm.weight", shape.width)
    if not gemma:
        matrix("output.weight", tokens, shape.width, 1.5)


if __name__ == "__main__":
    write_model(Path(sys.argv[2]), SHAPES[sys.argv[1]])
