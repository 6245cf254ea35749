"""A model behind a server: what it depends on, and its prompt. No network in here."""

from typing import Any

from tiers.backends.openai.account import key_of, key_route
from tiers.backends.openai.chat import Conversation, Dialect, clean, remote_config
from tiers.screenfile.tiers import OpenAIBatchTier
from tiers.tier import Inspection, Job, Tier, asked
from tiers.types import TierError


def identity(job: Job) -> dict[str, Any]:
    """What a judgement depends on: who serves, model, prompt, question, settings of the request.

    A model asked at once or by a batch is the same judge.
    """
    config = remote_config(job)
    home = config.urls == (config.known.base_url,)
    server: Any = config.version or (config.profile if home else sorted(config.urls))
    return {
        "backend": "openai",
        "server": server,
        "model": config.model,
        **asked(job, "api", "extra"),
    }


def inspect(job: Job, text: str) -> Inspection:
    """The prompt as the server will get it. Tokens are the server's to count.

    Raises:
        TierError: the key is not set, or may not go to that host.
    """
    config = remote_config(job)
    key_of(config)
    prompt = Conversation(job, Dialect.of(config)).prompt
    return Inspection(
        f"{config.model} at {', '.join(config.urls)}",
        f"{prompt.head}{clean(text)}{prompt.tail}",
        key=key_route(config),
    )


def open_here(job: Job) -> Tier:
    """Open a tier that asks at once; libcurl is loaded for nothing less.

    Raises:
        TierError: the tier answers by batches.
    """
    from tiers.backends.openai.http import Http

    if isinstance(job.config, OpenAIBatchTier):
        raise TierError(
            f"tier '{job.config.name}' answers within 24 hours and cannot be asked one by one"
        )
    return Http(job)
