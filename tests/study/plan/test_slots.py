"""Slots are counted node by node and card by card; a trial starts where there is room, and nowhere else."""

from __future__ import annotations

import random

import pytest

from study.cluster.connect import node_of
from study.plan.slots import (
    Node,
    Room,
    count_slots,
    describe_nodes,
    describe_share,
    next_larger,
    share_of,
    slots_on,
    wanted_gpus,
)
from study.spec.yaml_io import SpecError
from tests.study.tiny import tiny_spec

DGX = Node("dgx", 128.0, 8, "A100")


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "count"),
    [
        ([Node("a", 2)], 1, 0.0, 2),
        ([Node("a", 2)], 2, 0.0, 1),
        ([Node("a", 3), Node("b", 3)], 2, 0.0, 2),
        ([DGX], 1, 0.25, 32),
        ([DGX], 1, 0.125, 64),
        ([DGX], 1, share_of(3), 24),
        ([DGX], 1, share_of(6), 48),
        ([DGX], 1, 1.0, 8),
        ([DGX], 1, 3.0, 2),
        ([DGX, DGX], 1, 3.0, 4),
        ([DGX], 1, 0.0, 128),
        ([DGX], 4, 0.125, 32),
        ([Node("a", 4, 8)], 1, 0.25, 4),
        ([DGX, Node("head", 64)], 1, 0.25, 32),
        ([Node("head", 0), Node("b", 2)], 1, 0.0, 2),
        ([], 1, 0.0, 0),
    ],
)
def test_slots_are_counted_node_by_node(nodes: list[Node], cpus: int, gpus: float, count: int) -> None:
    assert count_slots(nodes, cpus, gpus) == count


@pytest.mark.parametrize(
    ("given", "nodes", "gpus"),
    [
        ("auto", [Node("a", 2)], 0.0),
        ("auto", [DGX], None),
        ("0.25", [DGX], 0.25),
        ("1/6", [DGX], 0.1666),
        ("0.1429", [DGX], 0.1428),
        ("2", [DGX], 2.0),
        ("0", [DGX], 0.0),
    ],
)
def test_what_the_spec_asks_for_is_what_a_trial_gets(given: str, nodes: list[Node], gpus: float | None) -> None:
    assert wanted_gpus(tiny_spec(f"resources.gpus_per_trial={given}").resources, nodes) == gpus


@pytest.mark.parametrize(
    ("nodes", "assignments", "message"),
    [
        ([Node("a", 2)], ("resources.gpus_per_trial=0.25",), r"gpus_per_trial is 0\.25 but no node has a GPU; use 0"),
        ([Node("a", 2), Node("b", 2)], ("resources.cpus_per_trial=3",), "no node fits one trial of 3 CPUs and 0 GPUs"),
        ([Node("a", 8, 1), Node("b", 8, 1)], ("resources.gpus_per_trial=2",), "2 nodes of 8 CPUs and 1 GPU; lower"),
        ([Node("a", 2, 1)], ("resources.cpus_per_trial=4",), "no node fits one trial of 4 CPUs and 1 GPU"),
        ([], (), "no node fits one trial of 1 CPU and 0 GPUs: no nodes"),
    ],
)
def test_what_fits_no_node_is_refused(nodes: list[Node], assignments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        wanted_gpus(tiny_spec(*assignments).resources, nodes)


@pytest.mark.parametrize("given", ["0.3", "1e-9", "1/101", "2/3", "1/0", "-1", "1.5", "half", "true"])
def test_a_share_that_is_not_one_over_k_is_refused(given: str) -> None:
    with pytest.raises(SpecError, match=r"resources\.gpus_per_trial: must"):
        tiny_spec(f"resources.gpus_per_trial={given}")


def test_as_many_shares_as_their_name_says_fit_on_a_card_in_rays_arithmetic() -> None:
    """Ray counts ten-thousandths: 1/7 written as 0.1429 fits six times."""
    for k in range(1, 101):
        share = share_of(k)
        assert round(share * 10_000) * k <= 10_000, k
        assert slots_on(Node("a", 1000, 1), 1, share) == k
        assert describe_share(share) == (f"1/{k}" if k > 1 else "1")
        assert next_larger(share) == (share_of(k - 1) if k > 1 else None)
    assert next_larger(0.0) is next_larger(2.0) is None


def test_what_the_drivers_own_job_has_reserved_is_no_room_for_trials() -> None:
    resources = {"CPU": 4.0, "GPU": 2.0, "accelerator_type:A100": 1.0, "memory": 1e9}
    assert node_of("a", resources, {"CPU": 1.0}) == Node("a", 3.0, 2, "A100")
    assert node_of("a", resources, {"CPU": 1.0, "GPU": 1.0}) == Node("a", 3.0, 1, "A100")
    assert node_of("a", {"memory": 1e9}, {}) == Node("a", 0.0)


@pytest.mark.parametrize("gpus", [0.0, 0.25, share_of(3), share_of(6), 1.0, 2.0])
def test_a_room_holds_as_many_trials_as_there_are_slots(gpus: float) -> None:
    nodes = [DGX, Node("small", 3, 2), Node("head", 0)]
    room, count = Room(nodes, 1), 0
    while room.fits(gpus):
        room.take(str(count), gpus)
        count += 1
    assert count == count_slots(nodes, 1, gpus)
    room.give_back("0")
    assert room.fits(gpus)


def test_a_share_never_lies_across_two_cards() -> None:
    room = Room([Node("a", 8, 2)], 1)
    for number in range(5):
        room.take(str(number), share_of(3))
    assert room.fits(share_of(3))
    assert not room.fits(0.5), "a third is left"
    assert not room.fits(1.0)
    room = Room([Node("a", 8, 2)], 1)
    room.take("small", 0.25)
    assert room.fits(1.0)
    assert not room.fits(2.0), "one of the two is no longer whole"


def test_the_fullest_card_is_filled_first_so_that_whole_ones_are_left() -> None:
    room = Room([Node("a", 8, 2)], 1)
    for number in range(4):
        room.take(str(number), 0.25)
    assert room.fits(1.0)


def test_trials_of_any_sizes_in_any_order_never_overfill_a_node() -> None:
    draw, sizes = random.Random(0), [share_of(k) for k in (1, 2, 3, 4, 6, 8)] + [2.0, 0.0]
    nodes = [Node("a", 12, 4), Node("b", 5, 1), Node("c", 3)]
    room, running = Room(nodes, 1), dict[str, float]()
    for number in range(2000):
        gpus = draw.choice(sizes)
        if room.fits(gpus):
            room.take(str(number), gpus)
            running[str(number)] = gpus
        assert sum(running.values()) <= 5
        assert len(running) <= 20
        if running and draw.random() < 0.5:
            ended = draw.choice(sorted(running))
            room.give_back(ended)
            del running[ended]
    for trial in running:
        room.give_back(trial)
    assert all(room.fits(gpus) for gpus in sizes)


def test_nodes_that_come_and_go_are_counted_again_and_who_lost_its_node_comes_first() -> None:
    nodes, now = [Node("a", 2, 1)], [0.0]
    room = Room(nodes, 1, recount=lambda: nodes, clock=lambda: now[0])
    room.take("0", 0.5)
    room.take("1", 0.5)
    assert not room.fits(0.5)
    nodes = [Node("a", 2, 1), Node("b", 2, 1)]
    assert not room.fits(0.5), "not looked at every time"
    now[0] += 10
    assert room.fits(0.5), "a node that joined"
    room.take("2", 0.5)
    nodes = [Node("b", 2, 1)]
    now[0] += 10
    assert not room.fits(0.5), "one of those that lost their node takes the other half, the other one waits"
    room.give_back("2")
    assert not room.fits(0.5), "and takes what becomes free before any new one"
    room.give_back("0")
    room.give_back("1")
    assert room.fits(1.0)
    nodes = []
    now[0] += 10
    assert not room.fits(0.5)


def test_equal_nodes_are_told_together() -> None:
    nodes = [DGX, DGX, Node("head", 16)]
    assert describe_nodes(nodes) == "2 nodes of 128 CPUs and 8 GPUs; 1 node of 16 CPUs"
    told = describe_nodes(nodes, lambda node: slots_on(node, 1, 0.25))
    assert told == "2 nodes of 128 CPUs and 8 GPUs: 32 slots each; 1 node of 16 CPUs: 0 slots each"
