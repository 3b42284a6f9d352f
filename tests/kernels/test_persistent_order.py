"""The tickets of the persistent kernels for sm_90: each tile has one, and waits for smaller ones alone."""

from types import SimpleNamespace

import pytest

from fastlora_kernels.configs import num_blocks

order = pytest.importorskip("fastlora_kernels.hopper.order")

# (rows of tiles, columns of dx, tiles of dB and dA, rows of a band): one of each; a band that is not full.
LAUNCHES = [(1, 1, 1, 16), (6, 1, 2, 2), (5, 3, 4, 2), (2, 5, 9, 16), (33, 4, 7, 16), (64, 16, 64, 16)]


@pytest.fixture(autouse=True)
def _on_integers(monkeypatch):
    """The functions as Python runs them."""
    on_integers = SimpleNamespace(where=lambda one, a, b: a if one else b, minimum=min, constexpr=int)
    monkeypatch.setattr(order, "gl", on_integers)
    for name in ("grouped_order", "place_of", "band_of", "backward_task"):
        monkeypatch.setattr(order, name, getattr(order, name).fn)


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
def test_backward_each_tile_has_one_ticket_and_waits_for_smaller_ones_alone(launch):
    rows, columns, gradients, group = launch
    bands = num_blocks(rows, group)
    dx, parts = {}, {}
    for ticket in range(rows * columns + bands * gradients):
        m, c, gradient = order.backward_task(ticket, rows, columns, gradients, group)
        if gradient < 0:
            assert (m, c) not in dx
            dx[m, c] = ticket
        else:
            band = order.band_of(ticket, rows, columns, gradients, group)
            assert (gradient, band) not in parts
            parts[gradient, band] = ticket
    assert sorted(dx) == [(m, c) for m in range(rows) for c in range(columns)]
    assert sorted(parts) == [(gradient, band) for gradient in range(gradients) for band in range(bands)]
    # dx waits for q of its rows; dB and dA for all of q and p, and for the band before.
    assert [dx[m, 0] for m in range(rows)] == list(range(rows))
    assert min(parts.values()) >= rows
    assert all(parts[gradient, band - 1] < ticket for (gradient, band), ticket in parts.items() if band)
    # They stand behind the dx tiles of their rows, which dy is loaded for too.
    assert all(dx[m, c] < parts[0, m // group] for m, c in dx)


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
def test_forward_each_tile_has_one_ticket_and_those_of_p_come_first(launch):
    rows, columns, _, group = launch
    places = [order.place_of(ticket, rows, columns, group) for ticket in range(rows * columns)]
    assert places[:rows] == [(m, 0) for m in range(rows)]
    assert sorted(places) == [(m, c) for m in range(rows) for c in range(columns)]
    assert [m // group for m, _ in places[rows:]] == sorted(m // group for m, _ in places[rows:])
