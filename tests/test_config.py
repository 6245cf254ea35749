"""The screen file: what is accepted, and what each fault is told."""

from pathlib import Path

import pytest

from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen, load_screen
from tiers.screenfile.tiers import LlamaTier

GOOD = """\
screen: data-engineers
candidates: {from: applicants.parquet, key: applicant_id, text: "{{ name }}\\n{{ resume }}"}
rubric: |
  Five years of work with data.
tiers:
  - {name: fast,    backend: llama, model: gemma-2-2b-it-Q4_K_M.gguf, ask: yes_no, policy: {reject_below: 0.15, accept_above: 0.99}}
  - {name: rescore, backend: llama, model: "hub: owner/repo/file.gguf", ask: score, policy: {top: 10000}}
  - {name: refine,  backend: llama, model: gemma-3-12b, ask: {json: {reasons: "list of str", seniority: "junior | mid | senior"}}, policy: {accept_above: 0.5}}
"""


def load(tmp_path: Path, text: str) -> Screen:
    path = tmp_path / "screen.yaml"
    path.write_text(text)
    return load_screen(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ScreenError) as caught:
        load(tmp_path, text)
    return caught.value.problems


def test_the_example_is_read(tmp_path: Path) -> None:
    screen = load(tmp_path, GOOD)
    fast, rescore, refine = screen.tiers
    assert isinstance(refine, LlamaTier)
    assert isinstance(refine.ask, JsonAsk)
    assert list(refine.ask.fields) == ["reasons", "seniority"]
    assert screen.policy(1).top == 10000
    assert screen.candidates.source == str(tmp_path / "applicants.parquet")
    assert fast.name == "fast"
    assert rescore.model.hub == "owner/repo/file.gguf"  # type: ignore[union-attr]


def test_a_model_beside_the_screen_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "gemma-2-2b-it-Q4_K_M.gguf").touch()
    screen = load(tmp_path, GOOD)
    assert screen.tiers[0].model == str(tmp_path / "gemma-2-2b-it-Q4_K_M.gguf")  # type: ignore[union-attr]


def test_five_faults_are_five_messages_each_with_its_line(tmp_path: Path) -> None:
    bad = (
        GOOD.replace("key: applicant_id", "kee: applicant_id")
        .replace("reject_below: 0.15", "reject_below: 15")
        .replace('backend: llama, model: "hub', 'backend: lama, model: "hub')
        .replace("junior | mid | senior", "grade")
    )
    found = problems(tmp_path, bad)
    assert len(found) == 5, found
    text = "\n".join(found)
    assert "candidates.key (line 2): is missing" in text
    assert "candidates.kee (line 2): unknown key; did you mean 'key'?" in text
    assert "tiers[0].policy.reject_below (line 6): Input should be less than or equal to 1" in text
    assert (
        "tiers[1] (line 7): backend 'lama' is unknown; write one of: llama, vllm, http, openai_batch, python"
        in text
    )
    assert "tiers[2].ask" in text
    assert "'grade' is no kind of field" in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: rescore", "name: fast", "2 tiers are called 'fast'"),
        (", policy: {top: 10000}", "", "has no policy, so it would promote everybody"),
        (
            "ask: score",
            "ask: maybe",
            "tiers[1].ask (line 7): 'maybe' is unknown; write one of: yes_no, score",
        ),
        ("ask: yes_no", "ask: yes-no", "did you mean 'yes_no'?"),
        (
            "top: 10000",
            'top: "10,000"',
            "tiers[1].policy.top (line 7): '10,000' is no number; write digits alone",
        ),
        ("{{ resume }}", "{{ resume", "no Jinja2"),
        ("reject_below: 0.15", "reject_below: 0.999", "lies above accept_above"),
        (
            "screen: data-engineers",
            "screen: data engineers",
            "screen (line 1): 'data engineers' is no name; write letters",
        ),
        ("ask: score", 'ask: score, prompt: "{{ rubric }}"', "{{ candidate }} 0 times"),
        ("ask: score", "ask: score, n_gpu_layer: 3", "did you mean 'n_gpu_layers'?"),
        ("refine", "2nd", "tiers[2].name"),
        ("{accept_above: 0.5}", "{}", "sets nothing"),
        ("{accept_above: 0.5}", "{accept_above: true}", "is no number"),
        ("ask: score", "ask: score, ask: yes_no", "stands twice"),
    ],
)
def test_each_fault_says_where_and_what_to_write(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    (found,) = problems(tmp_path, GOOD.replace(old, new, 1))
    assert said in found
    assert "(line " in found


@pytest.mark.parametrize("text", ["", "just words", "a: [", "- 1"])
def test_what_is_no_screen_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScreenError, match="cannot be read"):
        load_screen(tmp_path / "absent.yaml")


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).digest == load(tmp_path, GOOD + "\n# a comment\n").digest
    assert load(tmp_path, GOOD).digest != load(tmp_path, GOOD.replace("0.99", "0.98")).digest


PROMISE = "guarantee: {recall: 0.95, confidence: 0.9, against: refine, labels: 1000}\n"


def test_a_guarantee_is_read_and_moves_no_digest(tmp_path: Path) -> None:
    screen = load(tmp_path, GOOD + PROMISE)
    assert screen.guarantee is not None
    assert (screen.guarantee.kind, screen.guarantee.target) == ("recall", 0.95)
    assert screen.guarantee.delta == 0.1
    assert screen.digest == load(tmp_path, GOOD).digest
    assert load(tmp_path, GOOD + PROMISE.replace("0.95", "95 %")).guarantee == screen.guarantee


def test_a_guarantee_may_be_left_to_set_the_policies_of_cheaper_tiers(tmp_path: Path) -> None:
    bare = GOOD.replace(", policy: {top: 10000}", "")
    assert "would promote everybody" in problems(tmp_path, bare)[0]
    assert load(tmp_path, bare + PROMISE).policy(1).reject_below == 0.0


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("refine", "fast"), "'fast' is not the last tier; write against: refine, or people"),
        (("recall: 0.95", "recall: 0.95, accuracy: 0.9"), "write one of recall, precision"),
        (("recall: 0.95, ", ""), "write one of recall, precision"),
        (("recall", "recal"), "did you mean 'recall'?"),
        (("0.95", "95"), "less than 1"),
        (("labels: 1000", "labels: 0"), "greater than 0"),
        (("labels: 1000", "labels: 9, costs: [1, 2]"), "2 costs for 3 tiers; write one a tier"),
    ],
)
def test_a_guarantee_that_cannot_be_meant_is_told_what_to_write(tmp_path, said, told) -> None:
    found = problems(tmp_path, GOOD + PROMISE.replace(*said))
    assert any(told in one and "guarantee" in one and "(line 9)" in one for one in found), found


def test_a_guarantee_needs_a_last_tier_that_judges_one_by_one(tmp_path: Path) -> None:
    ranking = GOOD.replace("policy: {accept_above: 0.5}", "policy: {top: 5}")
    (found,) = problems(tmp_path, ranking + PROMISE)
    assert "write policy: {accept_above: 0.5}" in found
