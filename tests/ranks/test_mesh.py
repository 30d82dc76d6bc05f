"""Where a rank stands along each axis of a run."""

import pytest

from lmscale.ranks.mesh import Axis, Mesh, plan_mesh
from lmscale.ranks.ranks import Ranks


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_all_ranks_are_data_ranks_and_replicas_of_each_other(world_size):
    meshes = [plan_mesh(Ranks(rank=rank, world_size=world_size)) for rank in range(world_size)]
    for rank, mesh in enumerate(meshes):
        assert mesh.data == mesh.replicas == Axis(rank=rank, size=world_size)
        assert mesh.size == world_size
        assert {mesh.tensor, mesh.pipeline, mesh.sequence, mesh.expert} == {Axis()}


def test_replicas_count_the_pieces_of_a_window_but_not_those_of_a_matrix_or_of_the_layers():
    places = [
        Mesh(
            data=Axis(rank=data, size=3),
            sequence=Axis(rank=piece, size=2),
            tensor=Axis(rank=1, size=4),
            pipeline=Axis(rank=0, size=5),
        )
        for data in range(3)
        for piece in range(2)
    ]
    assert [mesh.replicas for mesh in places] == [Axis(rank=n, size=6) for n in range(6)]
    assert {mesh.size for mesh in places} == {3 * 2 * 4 * 5}
