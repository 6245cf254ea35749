"""A random llama in Hugging Face's layout with a tokenizer of its own, made on the spot."""

import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(
    folder: Path, *, width: int = 128, layers: int = 4, feed_forward: int = 384
) -> Path:
    """Write weights, configuration and tokenizer; the same for the same arguments."""
    words = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        max_position_embeddings=4096,
        initializer_range=1.5 * width**-0.5,
        bos_token_id=0,
        eos_token_id=2,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    _prefer(model, [words.convert_tokens_to_ids(word) for word in ("yes", "no", "Ġyes", "Ġno")])
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@torch.no_grad()
def _prefer(model: LlamaForCausalLM, tokens: list[int]) -> None:
    """Make some tokens likely after any text, as they are for a model that was asked for them.

    A llama has no bias, so the first dimension becomes one: every word sets it, no layer changes
    it, and only these tokens look at it.
    """
    model.model.embed_tokens.weight *= 8.0
    model.model.embed_tokens.weight[:, 0] = 30.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.lm_head.weight[:, 0] = 0.0
    model.lm_head.weight[tokens, 0] = 2.0


def tokenizer() -> PreTrainedTokenizerFast:
    """About 2,000 tokens, with control tokens and a chat template."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    lines = [line for path in files for line in path.read_text("utf-8").splitlines()]
    bare.train_from_iterator([*lines, *["yes\nno\nsay yes or no"] * 500], trainer)
    words = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>")
    words.add_tokens(["<think>"])  # an added token that does not call itself special
    words.chat_template = CHAT_TEMPLATE
    return words


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
