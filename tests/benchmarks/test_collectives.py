"""What is read from compiled programs whose collective operations are known by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import Transfer, read_transfers
from lattec_jax.runtime import sharding


def compile_(function, mesh, out, *inputs: tuple[tuple[int, ...], P]) -> str:
    shapes = [
        jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in inputs
    ]
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, out))
    return jitted.lower(*shapes).compile().as_text()


def test_a_product_over_a_split_dimension_and_a_gather():
    mesh, split = sharding.make_mesh(2, jax.devices()[:8]), P(("data", "fsdp"))
    # [3, 16] · [16, 5], each device with 2 of the 16: the products are added up.
    product = compile_(jnp.matmul, mesh, P(), ((3, 16), P(None, *split)), ((16, 5), split))
    (found,) = read_transfers(product)
    assert found[:4] == ("all-reduce", (3, 5), 60, 8)
    assert found.sent == 2 * 60 * 7 / 8
    # Groups of two devices share the rows.
    (found,) = read_transfers(compile_(lambda x: 2 * x, mesh, P(), ((4, 7), P("fsdp"))))
    assert found[:4] == ("all-gather", (4, 7), 112, 2)
    assert found.sent == 112 / 2


def test_a_loop_counts_as_often_as_it_runs():
    mesh = sharding.make_mesh(1, jax.devices()[:4])

    def program(x, y):  # needs the sum over the devices before the next round
        return jax.lax.fori_loop(0, 5, lambda _, total: jnp.sin(total @ x) @ y, jnp.ones((3, 8)))

    hlo = compile_(program, mesh, P(), ((8, 16), P(None, "data")), ((16, 8), P("data")))
    (found,) = read_transfers(hlo)
    assert (found.kind, found.shape, found.group, found.times) == ("all-reduce", (3, 8), 4, 5)
    assert found.sent == 5 * 2 * 96 * 3 / 4


WRITTEN = """
%few (p: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}

%many (p: f32[4]) -> f32[4] {
  %a = (f32[4]{0}, /*index=1*/bf16[2,3]{1,0}) all-reduce(%p, %q), replica_groups=[2,4]<=[8]
  ROOT %s = f32[4]{0} reduce-scatter(%t), replica_groups={{0,1}}, metadata={op_name="f/sum"}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  ROOT %c = f32[4]{0} conditional(%i, %p, %p), branch_computations={%few, %many}
}
"""


def test_the_branch_that_sends_most_counts_in_every_form_of_groups():
    assert read_transfers(WRITTEN) == [
        Transfer("all-reduce", (4,), 16, 4, ""),
        Transfer("all-reduce", (2, 3), 12, 4, ""),
        Transfer("reduce-scatter", (4,), 32, 2, "f/sum"),
    ]
    with pytest.raises(ValueError, match="groups of devices in a known form"):
        read_transfers(WRITTEN.replace("[2,4]<=[8]", "somehow"))
    loop = "ROOT %w = f32[4]{0} while(%p), condition=%i, body=%many"
    with pytest.raises(ValueError, match="a loop of unknown length"):
        read_transfers(WRITTEN.replace(WRITTEN.splitlines()[-2].strip(), loop))
