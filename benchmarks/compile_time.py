"""Time the lowering and the compilation of a training step on the first device.

    python -m benchmarks.compile_time [--models ViT-B-32 ViT-bigG-14] [--batch=64] [--no-remat]

The step is lowered with shapes only: nothing is allocated or run, and no compilation cache is used.
Prints a Markdown table; --json writes its rows to a file, after each of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import workload
from benchmarks.memory import LENGTHS, arguments, make_step, optimizer_and_method
from lattec_jax.models.config import CLIPConfig
from lattec_jax.runtime import sharding


def measure(model: CLIPConfig, batch: int, dtype: str, remat: bool) -> tuple[float, float]:
    """Return the seconds of lowering and of compilation."""
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    step = make_step(model, 1, remat, jnp.dtype(dtype), mesh)
    optimizer, _, method = optimizer_and_method()
    inputs = arguments(model, batch, method, optimizer, mesh)
    start = time.perf_counter()
    lowered = step.lower(*inputs, LENGTHS)
    middle = time.perf_counter()
    lowered.compile()
    return middle - start, time.perf_counter() - middle


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-bigG-14"])
    parser.add_argument("--layers", type=int, default=0, help="of each tower; 0: the model's")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--remat", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="file for the rows")
    values = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, batch {values.batch}, "
          f"{values.dtype}, remat {values.remat}\n")  # fmt: skip
    print("| model | lowering (s) | compilation (s) |\n|---|---|---|")
    rows = []
    for name in values.models:
        model = CLIPConfig.from_open_clip(workload.shortened(name, values.layers))
        lowering, compiling = measure(model, values.batch, values.dtype, values.remat)
        rows.append({"model": name, "lowering": lowering, "compilation": compiling})
        print(f"| {name} | {lowering:.1f} | {compiling:.1f} |", flush=True)
        if values.json:
            values.json.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
