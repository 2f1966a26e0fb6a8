"""Count what the devices of a training step send to each other, against the least that is needed.

    python -m benchmarks.collectives [--models small ViT-B-32] [--devices 1 2 4 8] [--batch=64]

Compiles the step for virtual CPU devices, from shapes only: nothing is allocated or run. The batch
grows with the devices (weak scaling), parameters are copied to all of them ("data") or split over
all ("fsdp"). Prints Markdown tables: operations of a device (XLA's cost analysis) and megabytes
that it sends, read from the compiled program; and, by arithmetic with stated rates, how long both
would take on real links.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.memory import (
    FAST_COMPILATION,
    LENGTHS,
    arguments,
    make_step,
    model_config,
    optimizer_and_method,
)
from benchmarks.scaling import SMALL
from lattec_jax.models.config import CLIPConfig
from lattec_jax.runtime import sharding

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# Bytes per second that a device sends, and FLOP/s of the device beside it: 300 TFLOP/s in bfloat16
# were measured on one H200, and 40% of a TPU v5e's 197 are assumed.
LINKS = (
    ("NVLink 4 (900 GB/s both ways)", 450e9, 300e12),
    ("InfiniBand NDR, 400 Gb/s per GPU", 50e9, 300e12),
    ("25 Gb/s Ethernet per GPU", 3.125e9, 300e12),
    ("TPU v5e, ICI of 1,600 Gb/s", 200e9, 79e12),
)

_COMPUTATION = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})\((.*)")
_ARRAY = re.compile(r"(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|branch_computations|body)=\{?(%[\w.-]+(?:, %[\w.-]+)*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Transfer(NamedTuple):
    """An array that a collective operation combines or moves."""

    kind: str
    shape: tuple[int, ...]  # of the result on each device
    size: int  # bytes of the full array: of what is gathered, or before it is scattered
    group: int  # devices that take part
    source: str  # the operation of the program, as JAX names it
    times: int = 1  # in one step

    @property
    def sent(self) -> float:
        """Bytes that each device sends, along a ring of its group."""
        if self.kind == "collective-permute":
            return self.times * self.size
        rounds = 2 if self.kind == "all-reduce" else 1
        return self.times * rounds * self.size * (self.group - 1) / self.group


def read_transfers(hlo: str) -> list[Transfer]:
    """Return the transfers of one call of a program, from the text of its compiled HLO for the CPU.

    The body of a loop counts as often as it runs, and of the branches of a condition the one that
    sends most.

    Raises:
        ValueError: a loop of unknown length, or groups of devices in an unknown form.
    """
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            bodies[name] = []
            entry = name if start[1] else entry
        elif name:
            bodies[name].append(line)

    def transfers(computation: str) -> Iterator[Transfer]:
        for line in bodies[computation]:
            if found := _COLLECTIVE.search(line):
                yield from _arrays(*found.groups())
                continue
            for called in _CALLED.findall(line):
                branches = [list(transfers(c.lstrip("%"))) for c in called.split(", ")]
                inner = max(branches, key=lambda branch: sum(t.sent for t in branch))
                trips = _TRIPS.search(line)
                if inner and " while(" in line and trips is None:
                    raise ValueError(f"a loop of unknown length sends data: {line.strip()}")
                times = int(trips[1]) if trips else 1
                yield from (t._replace(times=times * t.times) for t in inner)

    return list(transfers(entry))


def _arrays(types: str, kind: str, rest: str) -> Iterator[Transfer]:
    source = re.search(r'op_name="([^"]*)"', rest)
    group = 2 if kind == "collective-permute" else _group_size(rest)
    for bits, dimensions in _ARRAY.findall(types):
        shape = tuple(int(n) for n in dimensions.split(",") if n)
        size = math.prod(shape) * int(bits or 8) // 8
        if kind == "reduce-scatter":
            size *= group
        if group > 1:
            yield Transfer(kind, shape, size, group, source[1] if source else "")


def _group_size(attributes: str) -> int:
    # {{0,1},{2,3}} or [2,2]<=[4] or mesh['x'=2,'y'=2] {'y'}
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
        if all(axis in sizes for axis in found[2].split(",")):
            return math.prod(int(sizes[axis]) for axis in found[2].split(","))
    raise ValueError(f"expected groups of devices in a known form, found: {attributes[:200]}")


class Row(NamedTuple):
    """One step on each device."""

    flops: float
    transfers: list[Transfer]
    floor: float  # bytes

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return sum(t.sent for t in self.transfers)


def compile_step(model: CLIPConfig, batch_size: int, mesh: Mesh) -> Row:
    """Compile the step of LatteCLIP with texts like EuroSAT's.

    The CPU's compiler has no reduce-scatter: it reduces the gradient of a split parameter on all
    devices, each of which keeps its part. Those of GPUs and TPUs make this a reduce-scatter, and so
    it is counted.
    """
    optimizer, _, method = optimizer_and_method()
    step = make_step(model, 1, False, jnp.dtype("float32"), mesh)
    given = arguments(model, batch_size, method, optimizer, mesh)
    compiled = step.lower(*given, LENGTHS).compile(FAST_COMPILATION)
    params = given[0].params.values()
    split = [p for p in params if not p.sharding.is_fully_replicated]
    split_shapes = {tuple(sorted(p.shape)) for p in split}
    split_bytes = 4 * sum(p.size for p in split)
    copied_bytes = 4 * sum(p.size for p in params) - split_bytes
    transfers = [
        t._replace(kind="reduce-scatter")
        if t.kind == "all-reduce" and tuple(sorted(t.shape)) in split_shapes
        else t
        for t in read_transfers(compiled.as_text())
    ]
    features = 2 * 2 * 4 * batch_size * model.embed_dim  # of images and texts, and their gradients
    others = (mesh.size - 1) / mesh.size
    floor = others * (2 * copied_bytes + 3 * split_bytes + features)
    return Row(compiled.cost_analysis()["flops"], transfers, floor)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["small", "ViT-B-32"])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, default=64, help="images on each device")
    values = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(values.devices))
    for name in values.models:
        model = SMALL if name == "small" else model_config(name)
        rows = {}
        print(f"\n{name}, {values.batch} images on each device, float32, JAX {jax.__version__}\n")
        print(f"| parameters | devices | GFLOP | {' | '.join(KINDS)} | all (MB) | least (MB) | "
              "ratio |")  # fmt: skip
        print("|---" * (len(KINDS) + 6) + "|")
        for parameters in ("copied", "split"):
            for count in values.devices:
                if parameters == "split" and count == 1:
                    continue
                fsdp = count if parameters == "split" else 1
                mesh = sharding.make_mesh(fsdp, jax.devices()[:count])
                row = rows[parameters, count] = compile_step(model, values.batch * count, mesh)
                sent = [sum(t.sent for t in row.transfers if t.kind == kind) for kind in KINDS]
                cells = [f"{bytes_ / 1e6:,.1f}" for bytes_ in (*sent, row.sent, row.floor)]
                ratio = f"{row.sent / row.floor:.2f}" if row.floor else "–"
                print(f"| {parameters} | {count} | {row.flops / 1e9:,.1f} | {' | '.join(cells)} | "
                      f"{ratio} |", flush=True)  # fmt: skip
        print_links(rows, max(values.devices), values.batch)


def print_links(rows: dict[tuple[str, int], Row], devices: int, batch: int) -> None:
    """Print how long computing and sending take by arithmetic; nothing is measured."""
    print(f"\n| link, {devices} devices | parameters | computing (ms) | sending (ms) | bound by | "
          "both take as long with so many images on each device |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for link, rate, flops_rate in LINKS:
        for parameters in ("copied", "split"):
            row = rows[parameters, devices]
            computing, sending = row.flops / flops_rate, row.sent / rate
            bound = "computing" if computing > sending else "the link"
            print(f"| {link} | {parameters} | {1e3 * computing:.3g} | {1e3 * sending:.3g} | "
                  f"{bound} | {math.ceil(batch * sending / computing):,} |")  # fmt: skip


if __name__ == "__main__":
    main()
