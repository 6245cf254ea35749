import pytest

from tiers.backends.openai.pacing import Rate, Window, backoff


def fly(window: Window, seconds: float, *, capacity: float, base: float = 0.1) -> float:
    """A server that answers `capacity` requests a second at most: a larger window only waits."""
    now = 1.0
    while now < seconds:
        size = max(int(window.size), 1)
        latency = max(base, size / capacity)
        for number in range(size):
            window.answered(now, now + latency * (1 + number / size / 10))
        now += latency * 1.1
    return window.size


def test_the_window_grows_to_its_limit_where_it_pays():
    assert fly(Window(256), 10, capacity=1e9) == 256


def test_the_window_stays_where_more_only_waits():
    # 200 a second at 0.1 s: 20 under way are enough.
    assert fly(Window(1024), 60, capacity=200) < 100


def test_a_refusal_halves_the_window_and_older_requests_do_not_count_again():
    window = Window(64)
    fly(window, 5, capacity=1e9)
    window.refused(began=10.0, now=11.0)
    window.refused(began=10.5, now=11.1)  # begun before the window was cut
    assert window.size == 32
    window.refused(began=11.2, now=11.3)
    assert window.size == 16


def test_the_window_is_never_closed():
    window = Window(4)
    for second in range(50):
        window.refused(second, second + 0.5)
    assert window.size == 1.0


def test_a_rate_is_kept_over_time_whatever_the_pieces():
    rate, now, spent = Rate(600), 100.0, 0
    while now < 160.0:
        if rate.wait(now) == 0.0:
            rate.spend(5, now)
            spent += 5
        now += 0.01
    assert spent == pytest.approx(600, abs=25)


def test_no_rate_never_waits():
    rate = Rate(None)
    rate.spend(1e9, 0.0)
    assert rate.wait(0.0) == 0.0


def test_backoff_doubles_up_to_its_limit_with_jitter():
    for attempt in range(1, 30):
        whole = min(0.25 * 2 ** (attempt - 1), 30.0)
        assert whole / 2 <= backoff(attempt) <= whole
