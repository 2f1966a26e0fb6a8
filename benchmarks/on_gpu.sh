#!/usr/bin/env bash
# Measure on one GPU what benchmarks/README.md states about one, in at most nine minutes.
#
#     benchmarks/on_gpu.sh            # one GPU with 80 GB or more
#     benchmarks/on_gpu.sh --small    # a trial of this script with small sizes, on a CPU
#
# Prints one table at its end, also when a part fails. The table, the log and a JSON file for each
# part are in $OUT, by default runs/on_gpu; $PYTHON is the interpreter, by default python3. Missing
# packages are installed first, into the virtual environment of $PYTHON or else into a new one,
# runs/on_gpu-environment; nothing else is downloaded. Run nothing else meanwhile.
set -uo pipefail
results=$(realpath -m "${OUT:-$(dirname "$0")/../runs/on_gpu}")
cd "$(dirname "$0")/.."
SECONDS=0
LIMIT=525 # seconds for the parts and the installation; stopping and the table need a few more
small=${1:-}
if [ $# -gt 1 ] || [[ ! $small =~ ^(--small)?$ ]]; then
    echo "usage: benchmarks/on_gpu.sh [--small]" >&2
    exit 2
fi
python=${PYTHON:-python3}
machine="machine not examined"
if [ -n "$small" ]; then
    export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=
elif ! nvidia-smi -L; then
    echo "expected an NVIDIA GPU, found none; a trial without one: $0 --small" >&2
    exit 1
fi
scratch=$(mktemp -d)
mkdir -p "$results"
rm -f "$results"/{train_step,end_to_end,captioning,demo,compile_time}.json
: >"$results/log.txt"
: >"$results/parts.txt"
export HF_HUB_OFFLINE=1 LATTECLIP_CACHE=$scratch/cache PYTHONUNBUFFERED=1

# Print the table, whatever has been measured.
finish() {
    local running
    running=$(jobs -p)
    [ -z "$running" ] || kill $running
    wait
    {
        printf '\n%s; %s; %s s in all\n\n' "$machine" "$(date +%F)" "$SECONDS"
        "$python" -m benchmarks.on_gpu "$results" $small
    } | tee "$results/table.md"
    rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM

declare -A process began most

# Start a part, if it still fits: start NAME EXPECTED_SECONDS MOST_SECONDS COMMAND...
start() {
    local name=$1 expected=$2 left=$((LIMIT - SECONDS))
    began[$name]=$SECONDS
    most[$name]=$(($3 < left ? $3 : left))
    shift 3
    if ((left < expected)); then
        echo "$name out-of-time 0" >>"$results/parts.txt"
        return
    fi
    echo "$name: about $expected s" >&2
    echo "== $name: $*" >>"$results/log.txt"
    timeout -k 5 "${most[$name]}" "$@" >>"$results/log.txt" 2>&1 &
    process[$name]=$!
}

# Wait for a part and record its status: the second field of its line in parts.txt.
settle() {
    local name=$1 status=ok seconds
    [ -n "${process[$name]:-}" ] || return
    wait "${process[$name]}" || status=failed
    seconds=$((SECONDS - began[$name]))
    [ $status = ok ] || ((seconds < most[$name])) || status=out-of-time
    echo "$name $status $seconds" >>"$results/parts.txt"
}

# Print the machine; fail if a package is missing.
examine() {
    "$python" - $small <<'PYTHON'
import importlib.util, os, sys

names = """absl accelerate bitsandbytes flax ftfy huggingface_hub jax jaxtyping ml_collections
    numpy open_clip optax orbax PIL pydantic pytest safetensors scipy sentencepiece sklearn
    tensorboard tokenizers torch torchvision tqdm transformers""".split()
if missing := [name for name in names if importlib.util.find_spec(name) is None]:
    sys.exit(f"missing packages: {', '.join(missing)}")
import jax, torch

if "--small" not in sys.argv and not (jax.default_backend() == "gpu" and torch.cuda.is_available()):
    sys.exit("JAX or PyTorch finds no GPU")
print(f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} CPU cores, Python "
      f"{sys.version.split()[0]}, JAX {jax.__version__}, PyTorch {torch.__version__}")
PYTHON
}

# Install into the virtual environment of $python or a new one. A torch that is there remains: the
# extra captioning would want the newest.
install() {
    local extra=${small:+demo} environment=runs/on_gpu-environment
    if "$python" -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)'; then
        "$python" -m venv --system-site-packages "$environment" || return
        python=$environment/bin/python
    fi
    timeout -k 5 240 "$python" -m pip install --quiet -e ".[${extra:-cuda},convert]" accelerate \
        'bitsandbytes>=0.50,<0.51' pytest torch torchvision
}

if ! machine=$(examine 2>>"$results/log.txt"); then
    { install && machine=$(examine); } >>"$results/log.txt" 2>&1 || {
        machine="the packages could not be installed: see log.txt"
        exit 1
    }
fi

# What is compared, in the order of importance. Expected seconds are those of one H200, estimated
# from benchmarks/README.md: its run took 201 s, of which 21 are gone, and 15 for the inputs.
step=(--batch=512 --dtype=bfloat16 --rounds=2 --limit=110)
run=(--eurosat --again-steps=100)
captions=(--descriptions=32)
demo=(--config.train.max_steps=60)
compiled=(--models ViT-bigG-14)
if [ -n "$small" ]; then
    step=(--model=ViT-S-32 --layers=1 --batch=4 --rounds=1 --matmul=1024 --limit=110)
    run=(--images=96 --batch=32 --steps=6 --again-steps=4)
    captions=(--descriptions=4)
    demo=(--config.train.max_steps=4)
    compiled=(--models ViT-S-32 --layers=1 --batch=8)
fi
start train_step 165 240 "$python" -m benchmarks.train_step --no-compare "${step[@]}" \
    --json="$results/train_step.json"
settle train_step
start end_to_end 240 290 "$python" -m benchmarks.end_to_end "${run[@]}" --ways device \
    streamed-again --predict 0 --json="$results/end_to_end.json"
settle end_to_end
start captioning 40 100 "$python" -m benchmarks.captioning "${captions[@]}" --precisions nf4 \
    --json="$results/captioning.json"
settle captioning

# These two share the machine: the first gives accuracies, the second compiles, mostly on one core.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
start demo 40 90 "$python" -m lattec_jax.train --config=configs/demo.py "${demo[@]}" \
    --config.compute.dtype=bfloat16 --config.artifacts="$scratch/artifacts" \
    --workdir="$scratch/demo"
start compile_time 65 110 "$python" -m benchmarks.compile_time "${compiled[@]}" \
    --json="$results/compile_time.json"
settle demo
[ ! -e "$scratch/demo/results.json" ] || cp "$scratch/demo/results.json" "$results/demo.json"
settle compile_time
