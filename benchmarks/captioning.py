"""Descriptions per second of the engine llava: one by one against batched, 4-bit against bfloat16.

    python -m benchmarks.captioning [--descriptions=64] [--batch=0] [--precisions nf4 bfloat16]

On a GPU the architecture of llava-v1.6-mistral-7b-hf, on the CPU a small one of the same classes,
both with random weights: every description has exactly 25 new tokens. The whole path of the engine
is timed: preparing images, chat template, generation, decoding. Both rates of a row are taken in
one process, one after the other, after a warm-up. Prints a Markdown table; --json writes its rows
to a file, after each of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from captioning.engines import Identity, Request
from captioning.engines.llava import LlavaEngine
from captioning.engines.llava.loading import check_quantized, prepare_for_batches
from captioning.engines.llava.memory import UNQUANTIZED, estimate_memory, max_batch_size
from tests import tiny_llava

TOKENS = 25
PROMPT = "Describe the object in the photo concisely, using less than 20 words."


def architecture(device: str) -> Any:
    """The 7B's configuration on a GPU, a small one on the CPU."""
    if device == "cpu":
        return tiny_llava.configuration(hidden=512, layers=6, tile=56, patch=14)
    return tiny_llava.of_7b()


def random_model(config: Any, precision: str, device: str) -> Any:
    """Random weights made where they are used, and quantized there layer by layer."""
    module = tiny_llava.transformers()
    dtype = torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = module.LlavaNextForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    if precision == "nf4":
        quantize(model, device, dtype)
        check_quantized(model)
    return model


def quantize(model: Any, device: str, dtype: torch.dtype) -> None:
    """Replace the language model's linear layers by bitsandbytes' 4-bit layers."""
    import bitsandbytes

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear) or name.startswith(UNQUANTIZED):
            continue
        packed = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        packed.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data.cpu(),
            requires_grad=False,
            compress_statistics=True,
            quant_type="nf4",
            module=packed,
        )
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, packed.to(device))


def rate(engine: LlavaEngine, requests: list[Request], batch: int, device: str) -> float:
    """Descriptions per second."""
    engine.batch_size = batch
    list(engine.describe(requests[:batch]))  # warm-up
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    answered = sum(isinstance(text, str) for _, text in engine.describe(requests))
    seconds = time.perf_counter() - start
    if answered != len(requests):
        raise RuntimeError(f"expected {len(requests)} texts, found {answered}")
    return len(requests) / seconds


def measure(precision: str, device: str, descriptions: int, batch: int) -> dict[str, Any]:
    """One row of the table."""
    gc.collect()  # quantized weights and their layers refer to each other: the last row's remain
    torch.cuda.empty_cache()  # the batch is chosen by the free memory
    config = architecture(device)
    model = random_model(config, precision, device)
    processor = tiny_llava.processor(config)
    prepare_for_batches(model, processor)
    model.generation_config.min_new_tokens = TOKENS
    engine = LlavaEngine(Identity("llava", "random", precision), model, processor, 1, TOKENS)
    rng = np.random.default_rng(0)
    side = 2 * config.vision_config.image_size
    requests = [
        Request(str(n), "image", PROMPT, (Image.fromarray(pixels),))
        for n, pixels in enumerate(rng.integers(0, 256, (descriptions, side, side, 3), np.uint8))
    ]
    if not batch:
        need = estimate_memory(config, precision, TOKENS, device)
        batch = min(descriptions, max_batch_size(need, device))
    single = rate(engine, requests[: max(4, descriptions // 8)], 1, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    batched = rate(engine, requests, batch, device)
    return {
        "precision": precision,
        "single": single,
        "batched": batched,
        "batch": engine.batch_size,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--descriptions", type=int, default=64)
    parser.add_argument("--batch", type=int, default=0, help="0: by the free memory")
    parser.add_argument(
        "--precisions", nargs="+", choices=["nf4", "bfloat16"], default=["nf4", "bfloat16"]
    )
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()}"
    print(f"{name}; PyTorch {torch.__version__}; {TOKENS} new tokens each\n")
    print("| precision | one by one, 1/s | batched, 1/s (batch) | ratio | peak memory |")
    print("|---|---|---|---|---|")
    rows = []
    for precision in arguments.precisions:
        row = measure(precision, device, arguments.descriptions, arguments.batch)
        rows.append(row)
        peak = f"{row['peak_bytes'] / 2**30:.1f} GiB" if row["peak_bytes"] else "not measured"
        print(f"| {precision} | {row['single']:.2f} | {row['batched']:.2f} ({row['batch']}) | "
              f"{row['batched'] / row['single']:.1f} | {peak} |", flush=True)  # fmt: skip
        if arguments.json:
            arguments.json.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
