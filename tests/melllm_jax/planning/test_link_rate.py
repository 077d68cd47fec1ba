"""Rates of axes on real topologies of TPUs, and on stand-ins for GPUs."""

from unittest.mock import Mock

import jax
import numpy as np
import pytest

from melllm_jax import chips, sharding
from melllm_jax.config.run import Mesh
from melllm_jax.planning.topology import link_rate, parse_pod, pod_devices

V5E, V5P, V6E = (chips.CHIPS[f"TPU {name}"] for name in ("v5 lite", "v5p", "v6 lite"))

pytestmark = pytest.mark.libtpu


def tpus(topology, slices=1, **axes):
    """A pod and a mesh of it."""
    pytest.importorskip("libtpu", reason="needs the extra `plan`")
    pod = parse_pod(topology, slices)
    return pod, sharding.make_mesh(Mesh(**axes), pod_devices(pod))


@pytest.mark.parametrize(
    ("topology", "links_used"),
    [
        ("v5p:4x4x4", 6),  # both ways round three rings
        ("v5p:2x2x4", 4),  # one ring and two lines
        ("v5p:2x2x1", 2),
        ("v5e:2x2", 2),
        ("v5e:4x4", 2),  # no side is 16
        ("v5e:16x16", 4),
        ("v5e:8x16", 3),
    ],
)
def test_an_axis_over_the_whole_pod_sends_both_ways_round_rings_and_one_way_on_lines(
    topology, links_used
):
    pod, mesh = tpus(topology)
    expected = links_used * pod.chip.link, False
    assert link_rate(mesh, ["fsdp"], pod) == expected
    assert link_rate(mesh, sharding.AXES, pod) == expected
    assert link_rate(mesh, [], pod) == expected  # groups of no known axes: all devices


def sides(mesh, axis):
    """Chips that a group of the mesh's `axis` spans on each side of its pod."""
    index = tuple(slice(None) if name == axis else 0 for name in mesh.axis_names)
    coords = np.array([device.coords for device in mesh.devices[index].flat])
    return [len(set(side)) for side in coords.T.tolist()]


def test_two_axes_of_a_cube_share_its_sides():
    pod, mesh = tpus("v5p:4x4x4", fsdp=16, tp=4)
    assert (sorted(sides(mesh, "fsdp")), sorted(sides(mesh, "tp"))) == ([1, 4, 4], [1, 1, 4])
    assert link_rate(mesh, ["fsdp"], pod) == (4 * V5P.link, False)
    assert link_rate(mesh, ["tp"], pod) == (2 * V5P.link, False)


def test_a_part_of_a_ring_is_a_line():
    """Of 4 × 4 × 4, 32 × 2 splits one side in two: each half has no way round."""
    pod, mesh = tpus("v5p:4x4x4", replica=2, fsdp=32)
    assert (sorted(sides(mesh, "replica")), sorted(sides(mesh, "fsdp"))) == ([1, 1, 2], [2, 4, 4])
    assert link_rate(mesh, ["replica"], pod) == (V5P.link, False)
    assert link_rate(mesh, ["fsdp"], pod) == (5 * V5P.link, False)


def test_an_axis_of_one_side_of_a_flat_pod_is_one_line():
    pod, mesh = tpus("v6e:4x4", fsdp=4, tp=4)
    assert link_rate(mesh, ["tp"], pod) == (V6E.link, False)


def test_what_crosses_slices_goes_by_the_adapters_of_the_group_in_each():
    pod, mesh = tpus("v5e:2x4", 2, replica=2, fsdp=8)
    assert link_rate(mesh, ["fsdp"], pod) == (2 * V5E.link, False)
    assert link_rate(mesh, ["replica"], pod) == (V5E.network, True)
    assert link_rate(mesh, ["replica", "fsdp"], pod) == (8 * V5E.network, True)


def test_devices_that_share_a_chip_share_its_links():
    pod, mesh = tpus("tpu7x:2x2x1", fsdp=4, tp=2)
    assert sides(mesh, "tp") == [1, 1, 1]
    assert link_rate(mesh, ["tp"], pod) == (pod.chip.link / 2, False)
    assert link_rate(mesh, ["fsdp", "tp"], pod) == (2 * pod.chip.link / 2, False)


def gpus(servers, each, shape):
    """A mesh of that shape of stand-ins for GPUs: all that `rate` asks is which server has each."""
    devices = [Mock(spec=jax.Device, process_index=i // each) for i in range(servers * each)]
    grid = np.array(devices).reshape(shape)
    return Mock(spec=jax.sharding.Mesh, axis_names=sharding.AXES, devices=grid)


def test_gpus_of_one_server_talk_by_nvlink_and_of_several_by_their_adapters():
    pod, chip = parse_pod("h100:4x8"), chips.CHIPS["H100"]
    grid = gpus(4, 8, (1, 8, 1, 4))
    assert link_rate(grid, ["tp"], pod) == (chip.link, False)
    # fsdp has two GPUs of each server: two adapters there.
    assert link_rate(grid, ["fsdp"], pod) == (2 * chip.network, True)
    # Eight adapters of 50 GB/s are slower than NVLink's 450.
    assert link_rate(grid, ["fsdp", "tp"], pod) == (8 * chip.network, True)


def test_no_group_of_gpus_is_faster_than_nvlink():
    """Nor are servers of sixteen, whose adapters together would be."""
    pod, chip = parse_pod("h100:2x8"), chips.CHIPS["H100"]
    assert 16 * chip.network > chip.link
    assert link_rate(gpus(2, 16, (1, 32, 1, 1)), ["fsdp"], pod) == (chip.link, True)
