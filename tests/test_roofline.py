"""Ceilings of local tiers: the recomputed figures of a published workload, and our own machine."""

from pathlib import Path

import pytest

from tiers.planning import roofline as planning
from tiers.planning.machine import Gpu, Llama, Machine
from tiers.planning.roofline import (
    HARDWARE,
    Ceilings,
    ceilings_for,
    decode_bytes,
    explain,
    measured_ceilings,
    prefill_flop,
    roofline,
)
from tiers.planning.shape import preset_shape
from tiers.screenfile.tiers import HttpTier, LlamaTier
from tiers.tier import Job


def job(**settings: object) -> Job:
    tier = {"name": "fast", "backend": "llama", "model": "gemma-2-2b"} | settings
    return Job("r" * 7200, LlamaTier.model_validate(tier))


def machine(*gpus: Gpu) -> Machine:
    return Machine("a processor", [], 2, 2, 32 << 30, 30 << 30, 1 << 40, list(gpus), Llama([]))


def test_the_reference_workload_is_about_twenty_records_a_second() -> None:
    """48.7 TFLOPS / (2 x 2B x 600); four without the prefix's reuse: 3,000 tokens each."""
    card = HARDWARE["4080"]
    shape = preset_shape("gemma-2-2b")
    found = roofline(shape._replace(matrices=2 * 10**9), card, own=600, shared=2400)
    assert found.records == pytest.approx(48.7e12 / (2 * 2e9 * 600))
    assert found.bound == "compute"
    assert roofline(shape, card, own=600, shared=2400).records == pytest.approx(20, rel=0.02)
    assert roofline(shape, card, own=3000, shared=0).records == pytest.approx(4, rel=0.02)


def test_the_shared_prefix_is_counted_once() -> None:
    shape, card = preset_shape("gemma-2-2b"), HARDWARE["4080"]
    few, many = (roofline(shape, card, own=600, shared=tokens) for tokens in (100, 2400))
    assert few.prefill_flop == many.prefill_flop
    assert many.shared_flop == 24 * few.shared_flop
    assert few.records == many.records


def test_writing_is_bound_by_memory_and_shared_by_replies() -> None:
    shape, card = preset_shape("gemma-2-2b"), HARDWARE["4080"]
    alone = roofline(shape, card, own=600, shared=2400, written=300)
    together = roofline(shape, card, own=600, shared=2400, written=300, together=8)
    assert alone.bound == "memory"
    assert alone.records < together.records < 8 * alone.records
    assert decode_bytes(1000, 2.0, 50) == 1100
    assert prefill_flop(3, 5) == 30


def test_a_card_of_the_table_is_known_by_its_name(tmp_path: Path) -> None:
    card = Gpu("NVIDIA H200", 141 << 30, 139 << 30)
    assert ceilings_for(job(n_gpu_layers=-1), machine(card), tmp_path) is HARDWARE["h200"]
    a100 = Gpu("NVIDIA A100-SXM4-40GB", 40 << 30, 39 << 30)
    assert ceilings_for(job(n_gpu_layers=-1), machine(a100), tmp_path) is HARDWARE["a100"]
    four = Gpu("NVIDIA GeForce RTX 4080", 16 << 30, 15 << 30)
    assert ceilings_for(job(n_gpu_layers=-1), machine(four), tmp_path) is HARDWARE["4080"]


def test_a_measured_machine_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PROBE_SECONDS", 0.01)
    first = measured_ceilings(tmp_path, "a processor", 2)
    assert first.flops > 1e8
    assert first.bandwidth > 1e8
    assert measured_ceilings(tmp_path, "a processor", 2) == first
    (tmp_path / "ceilings.json").write_text("{")
    assert measured_ceilings(tmp_path, "a processor", 2).name == first.name


def test_rows_for_people_tell_what_was_reached_and_what_was_not_measured() -> None:
    ceilings = Ceilings("a machine", 1e12, 1e11, "made up")
    rows = dict(explain(job(), ceilings, 600, measured=0.1))
    assert rows["tier"] == "fast"
    assert rows["measured"] == "0.1 candidates/s, 24% of the ceiling"
    assert dict(explain(job(), ceilings, 600))["measured"] == "not measured"
    server = HttpTier.model_validate(
        {"name": "far", "backend": "http", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
    )
    assert "not known" in dict(explain(Job("r", server), ceilings, 600))["ceiling"]
