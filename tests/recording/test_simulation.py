"""The simulated recording: nothing is lost or made twice, and without trouble it equals the arithmetic."""

import pytest

pytest.importorskip("simpy")
from benchmarks.simulate import Cluster, Simulation, assumed, shard_seconds

TROUBLE = [
    {},
    {"slow_share": 0.5, "slow_factor": 3.0},
    {"lost_s": 40.0, "restart_s": 5.0},
    {"lost_s": 15.0, "restart_s": 30.0, "slow_share": 0.3, "slow_factor": 2.0},
]


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("seed", range(5))
def test_every_shard_is_made_once_and_all_time_is_accounted_for(trouble, seed):
    shards_s = shard_seconds(assumed(0), prompts=61, shard=4, batch=2, forward_s=0.01, seed=seed)
    cluster = Cluster(gpus=6, per_node=2, **trouble)
    outcome = Simulation(cluster, shards_s, seed).run()
    assert outcome.made == dict.fromkeys(range(16), 1)
    assert sum(outcome.spent_s.values()) == pytest.approx(cluster.gpus * outcome.elapsed_s)
    assert outcome.elapsed_s >= sum(shards_s) / cluster.gpus
    assert outcome.spent_s["useful"] >= sum(shards_s) - 1e-9
    assert all(seconds >= 0 for seconds in outcome.spent_s.values())
    if not cluster.lost_s:
        assert outcome.spent_s["lost"] == outcome.spent_s["down"] == outcome.losses == 0
    again = Simulation(cluster, shards_s, seed).run()
    assert again == outcome


@pytest.mark.parametrize(("shards", "gpus"), [(12, 4), (13, 4), (3, 8), (1, 1)])
def test_without_losses_and_slow_gpus_it_is_the_arithmetic_plan(shards, gpus):
    outcome = Simulation(Cluster(gpus), [7.0] * shards, seed=0).run()
    assert outcome.elapsed_s == pytest.approx(7.0 * -(-shards // gpus))
    assert outcome.spent_s["useful"] == pytest.approx(7.0 * shards)
