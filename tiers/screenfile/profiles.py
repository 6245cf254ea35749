"""Kinds of OpenAI-compatible servers and their habits; what one really gives, its replies show."""

from typing import NamedTuple


class Profile(NamedTuple):
    """What to expect of a kind of server before it has answered."""

    base_url: str | None = None
    key_variable: str | None = None
    """The environment variable of its key; None where no key is needed."""
    top_logprobs: int = 20
    """How many of the likeliest tokens it lists at most."""
    limit: str = "max_tokens"
    """The name of the setting that bounds a reply."""
    cache_key: bool = False
    """Whether `prompt_cache_key` sends requests with one prefix to one cache."""
    named_logprobs: bool = False
    """Whether it gives the probability of any token that is asked for."""


PROFILES = {
    "any": Profile(),
    "openai": Profile(
        "https://api.openai.com/v1",
        "OPENAI_API_KEY",
        limit="max_completion_tokens",
        cache_key=True,
    ),
    "groq": Profile("https://api.groq.com/openai/v1", "GROQ_API_KEY", top_logprobs=0),
    "together": Profile("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "fireworks": Profile(
        "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", top_logprobs=5
    ),
    "vllm": Profile("http://127.0.0.1:8000/v1", named_logprobs=True),
    "llama-server": Profile("http://127.0.0.1:8080/v1"),
    "ollama": Profile("http://127.0.0.1:11434/v1"),
}

TRUSTED_HOSTS = "TAMIS_TRUSTED_HOSTS"
"""The variable that says which key may go to which host: `MY_KEY@host, MY_KEY@http://other`."""
