"""Write a trained judge as GGUF: architecture llama, tokenizer gpt2, no BOS token, tied head."""

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from numpy.typing import NDArray
from tokenizers import Tokenizer

from demo.model import Judge, Shape

NAME = "Tamis demo model: knows only the demo task"
BLOCK = 32
"""Q8_0 shares one scale among this many weights of a row."""


def export(judge: Judge, words: Tokenizer, path: Path) -> None:
    """Q8_0 where a row is whole blocks, F16 for other matrices, F32 for norms."""
    whole = judge.shape.width % BLOCK == 0
    writer = GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if whole else LlamaFileType.MOSTLY_F16)
    _add_shape(writer, judge.shape)
    _add_words(writer, words)
    for name, parameter in judge.named_parameters():
        weights = parameter.detach().numpy()
        if ".attn_q." in name or ".attn_k." in name:
            weights = interleaved(weights, judge.shape.heads)
        _add_tensor(writer, name, np.ascontiguousarray(weights))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows from [first halves, second halves] of each head to the pairs that llama.cpp rotates."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, -1, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_shape(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocabulary)


def _add_words(writer: GGUFWriter, words: Tokenizer) -> None:
    ids: dict[str, int] = words.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    special = {token.content for token in words.get_added_tokens_decoder().values()}
    merges = json.loads(words.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["</s>"])
    writer.add_pad_token_id(ids["<pad>"])
    writer.add_add_bos_token(False)


def _add_tensor(writer: GGUFWriter, name: str, weights: NDArray[np.float32]) -> None:
    if weights.ndim == 1:
        writer.add_tensor(name, weights)
    elif weights.shape[1] % BLOCK:
        writer.add_tensor(name, weights.astype(np.float16))
    else:
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quants.quantize(weights, kind), raw_dtype=kind)
