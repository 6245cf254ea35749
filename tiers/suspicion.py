"""Texts that speak to their judge: a few rules with names, for people to look at.

A rule is no proof and no defence: whoever knows it writes past it. What the rules miss, and how
often they mark an honest text, is measured by bench.injection.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping

_JUDGE = (
    r"(?:reviewer|evaluator|judge|screener|grader|assessor|classifier|assistant|chat ?bot|ai|llm|"
    r"language model)"
)
_RULES = (
    r"(?:instruction|rubric|criteri|prompt|rule|guideline|direction|anweisung|vorgabe|regeln|consigne|"
    r"instruccion|criterio|istruzion|инструкц|правил|критери|指示|指令|規則|规则|标准|基準|تعليمات|지시|निर्देश)"
)
_IGNORE = (
    r"(?:ignor|disregard|forget|overrid|bypass|skip|vergiss|vergessen|missachte|oublie|olvid|descart|"
    r"dimentica|игнорир|забуд|忽略|无视|無視|不要理会|تجاهل|무시|अनदेखा)"
)
_GAP = r"[^\w.!?]{1,5}"
"""Between words of one sentence."""
_YES = r"(?:yes|accept(?:ed)?|approve[d]?|fit|qualified|true|1\.0+|10|100)"

RULES: Mapping[str, re.Pattern[str]] = {
    # Strings by which models know who speaks: <|im_start|>, [INST], <start_of_turn>, </s>.
    "control token": re.compile(
        r"<\|[\w ]{1,30}\|>|\[/?inst\]|<</?sys>>|</?s>|<(?:start|end)_of_turn>"
        r"|<\uff5c[^>\n]{1,40}\uff5c>|^(?:system|assistant) ?: "
        r"|^[ \t]{0,8}#{2,3} ?(?:instruction|response|system|assistant)\b",
        re.MULTILINE,
    ),
    # Ignore the rubric, in some languages.
    "instruction": re.compile(
        rf"{_IGNORE}\w{{0,20}}{_GAP}(?:\w{{1,30}}{_GAP}){{0,6}}?{_RULES}"
        rf"|{_IGNORE}[^.!?\n]{{0,12}}{_RULES}"
        rf"|{_RULES}\w{{0,6}}.{{0,12}}(?:無視|무시|अनदेखा|忽略)",
    ),
    # An answer of its own, in the layout of a prompt or as JSON.
    "verdict": re.compile(
        rf"\b(?:verdict|decision|answer|rating|score|assessment|fit|match)\b[\"'*]{{0,3}}\s{{0,3}}[:=]\s{{0,3}}[\"'*{{\[]{{0,3}}\s{{0,3}}{_YES}\b"
        r"|\"\w{1,30}\"\s{0,3}:\s{0,3}\"(?:yes|accept)",
    ),
    # Words to whoever judges: you are now a ..., answer with yes, note to the reviewer.
    "to the judge": re.compile(
        rf"\byou (?:are|act|will act|must act)(?: now)?(?: as)? (?:an?|the|my) "
        rf"(?:\w{{1,20}} ){{0,4}}{_JUDGE}\b"
        rf"|\b(?:note|message|reminder|attention|dear|hello|hey)\b.{{0,12}}\b{_JUDGE}\b"
        rf"|\b(?:answer|reply|respond|output|say|return|write|print|give)\W{{1,5}}"
        rf"(?:\w{{1,30}}\W{{1,5}}){{0,5}}?[\"']?{_YES}\b[\"']?(?=\W{{0,3}}(?:$|\n|[.!]))"
        r"|\b(?:system|developer) (?:prompt|message|override|notice)\b"
        r"|\bjailbreak|\bdeveloper mode\b|\bdo anything now\b",
    ),
    # Words that a person does not see: comments, tags of Unicode, zero width, turned direction.
    "hidden text": re.compile(
        r"<!--.{0,2000}?-->|[\U000e0000-\U000e007f]|[\u200b\u2060\ufeff]{2}|\w[\u200b\u2060\ufeff]\w"
        r"|[\u202d\u202e]|(?:display\s*:\s*none|font-size\s*:\s*0|visibility\s*:\s*hidden)",
        re.DOTALL,
    ),
    # The same over and over.
    "repeats": re.compile(r"(\b\w[^\n]{0,40}?[\W_])\1{14,}|(.{1,3}?)\2{199,}", re.DOTALL),
}
"""What marks a text, by name. They read it in small letters: as it is, and without disguises."""
LONGEST = 20_000
"""Characters at either end of a text that are looked at."""

_STRIDE, _GRAM, _UNIT, _TIMES = 15, 8, 43, 6
"""Of `_may_repeat`: what fits into the shortest run of its rule, 15 times two characters."""

_TOKENS = (
    "<|", "<s", "</s", "<<", "<start", "<end", "<\uff5c", "[inst]", "[/inst]", "##",
    "system:", "system :", "assistant:", "assistant :",
)  # fmt: skip
_IGNORES = re.compile(_IGNORE)
_ANSWERS = re.compile(
    r"[:=]\s{0,3}[\"'*{\[]{0,3}\s{0,3}(?:yes|accept|approve|fit|qualified|true|1)|\"(?:yes|accept)"
)


def _may_repeat(text: str) -> bool:
    """Whether something stands there seven times in a row; steps over no run of the rule."""
    for start in range(0, len(text) - _GRAM, _STRIDE):
        gram = text[start : start + _GRAM]
        end = start + _UNIT + _GRAM
        again = text.find(gram, start + 1, end)
        while again >= 0:
            length = _TIMES * (again - start)
            if text[start : start + length] == text[again : again + length]:
                return True
            again = text.find(gram, again + 1, end)
    return False


def _may_hide(text: str) -> bool:
    signs = ("<!--", "display", "font-size", "visibility")
    return not text.isascii() or any(sign in text for sign in signs)


_CHEAP: Mapping[str, Callable[[str], object]] = {
    "control token": lambda text: any(sign in text for sign in _TOKENS),
    "instruction": _IGNORES.search,
    "verdict": _ANSWERS.search,
    "hidden text": _may_hide,
    "repeats": _may_repeat,
}
"""What is true of every text that meets the rule, and of few others: rules are slow, and most texts
meet none."""

_UNSEEN = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def suspicions(text: str) -> list[str]:
    """The rules that a text meets; empty for nearly all."""
    if len(text) > 2 * LONGEST:
        text = f"{text[:LONGEST]}\n{text[-LONGEST:]}"
    text = text.lower()
    plain = _undisguised(text)
    return [name for name in RULES if meets(name, text) or (plain != text and meets(name, plain))]


def meets(name: str, text: str) -> bool:
    """Whether a text in small letters meets the rule of this name."""
    cheap = _CHEAP.get(name)
    return (cheap is None or bool(cheap(text))) and RULES[name].search(text) is not None


def _undisguised(text: str) -> str:
    """The text as it is meant to be read: full-width and styled letters plain, nothing unseen."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).lower()
