"""What tiers that ask a server have in common: identity, key, lengths. No network in here."""

import ipaddress
import os
import re
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit

from tiers.backends.openai.chat import CHARACTERS_PER_TOKEN, AnyRemote, clean
from tiers.backends.tokens import EMPTY, cut
from tiers.screenfile.profiles import PROFILES, TRUSTED_HOSTS
from tiers.types import Candidate, Judgement, TierError

HIDDEN = "(key)"
SHOWN = 300
"""Characters of a server's own words in a message."""
PART = 10
"""So many characters of a key in a row are its own: beginnings such as `sk-proj-` are shorter."""


def key_of(config: AnyRemote) -> str | None:
    """The key from the environment; None where the server needs none.

    Raises:
        TierError: the variable is not set, or may not be sent to one of the tier's hosts.
    """
    name = config.key_name
    if name is None:
        return None
    _check_hosts(config, name)
    key = os.environ.get(name, "").strip()
    if not key:
        raise TierError(
            f"tier '{config.name}' needs a key: set the variable {name}, in the environment or in "
            "the file .env"
        )
    return key


def key_route(config: AnyRemote) -> str | None:
    """Which variable goes to which hosts, in words; None where no key is sent."""
    if config.key_name is None:
        return None
    hosts = dict.fromkeys(urlsplit(url).netloc for url in config.urls)
    return f"{config.key_name} goes to {', '.join(hosts)}"


def _check_hosts(config: AnyRemote, name: str) -> None:
    """Refuse to send a variable where its owner did not say that it belongs.

    A screen file is passed around, and it names both the variable and the address: without this it
    could send any secret of its reader anywhere.

    Raises:
        TierError: with what to set.
    """
    allowed = set(_allowed(name))
    wanted = []
    for parts in map(urlsplit, config.urls):
        safe = parts.scheme == "https"
        if is_this_machine(parts) or (safe, parts.hostname) in allowed:
            continue
        if (False, parts.hostname) not in allowed:
            wanted.append(f"{name}@{'' if safe else 'http://'}{_bare(parts)}")
    if not wanted:
        return
    plain = any("@http://" in each for each in wanted)
    raise TierError(
        f"tier '{config.name}' would send the variable {name} to "
        f"{', '.join(each.partition('@')[2] for each in wanted)}, which nobody has allowed"
        + (", and plain http shows it to all on the way" if plain else "")
        + f"; if it belongs there, set {TRUSTED_HOSTS}={','.join(wanted)} in the environment, or "
        "beside the key in the file .env"
    )


def _allowed(name: str) -> Iterator[tuple[bool, str | None]]:
    """The hosts that may get this variable, each with whether TLS is needed."""
    for profile in PROFILES.values():
        if profile.base_url is not None and profile.key_variable == name:
            yield True, urlsplit(profile.base_url).hostname
    for entry in re.split(r"[,;\s]+", os.environ.get(TRUSTED_HOSTS, "")):
        variable, _, host = entry.partition("@")
        if variable == name and host:
            parts = urlsplit(host if "://" in host else f"https://{host}")
            yield parts.scheme != "http", parts.hostname


def _bare(parts: SplitResult) -> str:
    """The host without its port, as it stands in an address."""
    return f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)


def is_this_machine(parts: SplitResult) -> bool:
    """Whether an address is loopback: what listens there was started by the machine's own users."""
    try:
        return ipaddress.ip_address(str(parts.hostname)).is_loopback
    except ValueError:
        return parts.hostname == "localhost"


def shown(text: str, key: str | None) -> str:
    """The first words of what a server says, without the key."""
    return hide(" ".join(text.split()), key)[:SHOWN]


def hide(text: str, key: str | None) -> str:
    """The text without the key, or any longer part of it, which servers repeat in their errors."""
    if not key:
        return text
    text = text.replace(key, HIDDEN)
    parts = {key[i : i + PART] for i in range(len(key) - PART + 1)}
    kept: list[str] = []
    until = 0
    for place in (i for i in range(len(text)) if text[i : i + PART] in parts):
        if place > until or not kept:
            kept.append(text[until:place] + HIDDEN)
        until = place + PART
    return "".join([*kept, text[until:]])


def prepare(candidate: Candidate, config: AnyRemote) -> "tuple[str, str | None] | Judgement":
    """The text to send and what was done to it; or a judgement where it cannot be sent.

    The tokenizer is the server's, so that lengths are guessed from characters.
    """
    text, longest = candidate.text, config.max_candidate_tokens * CHARACTERS_PER_TOKEN
    if not text.strip():
        return Judgement(candidate.id, None, error=EMPTY)
    note = None
    if len(text) > longest:
        if config.too_long == "review":
            said = f"about {len(text) // CHARACTERS_PER_TOKEN:,} tokens, longer than the "
            said += f"{config.max_candidate_tokens:,} of max_candidate_tokens; raise it or write "
            return Judgement(candidate.id, None, error=f"{said}too_long: head_tail")
        note = f"cut from {len(text):,} to {longest:,} characters"
        text = cut(text, longest, config.too_long)
    safe = clean(text)
    if safe is not text and safe != text:
        note = f"{note}; control strings broken up" if note else "control strings broken up"
    return safe, note
