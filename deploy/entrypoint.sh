#!/bin/sh
# Starts Triton with the AutoGaze models. What a bundle is built from and for decides where it lies in the volume:
# it is built at the first start on a machine of its kind, and found there ever after. Arguments go to tritonserver.
#
#   AUTOGAZE_BUNDLE      a bundle to serve as it is; nothing is built then
#   AUTOGAZE_CHECKPOINT  hub id or folder (default: open)
#   AUTOGAZE_REVISION    branch, tag or commit of a hub id
#   AUTOGAZE_ENGINE      what serves: tensorrt, tensorrt-rtx, onnxruntime or auto (default: auto, which builds plans where a GPU
#                        and TensorRT are, and serves without them where that fails)
#   AUTOGAZE_BUILD_ARGS  further arguments of 'autogaze build', separated by spaces
#   AUTOGAZE_VOLUME      where bundles and downloads are kept (default: /var/lib/autogaze)
#   AUTOGAZE_REPOSITORY  a model repository of your own (default: the shipped one)
#   AUTOGAZE_CLIP_INSTANCES, AUTOGAZE_STREAM_INSTANCES, AUTOGAZE_INGEST_INSTANCES
#                        processes of a model (default: 1 and 2)
#   AUTOGAZE_MPS         1: these processes use the GPU side by side (NVIDIA's Multi-Process Service), not in turns
#   TRITONSERVER         the server's binary (default: tritonserver on PATH)
set -eu

say() { printf 'autogaze: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

volume=${AUTOGAZE_VOLUME:-/var/lib/autogaze}
server=${TRITONSERVER:-tritonserver}

# The root file system may be read-only: everything that is written goes to the volume or to /tmp.
export HOME="${AUTOGAZE_HOME:-/tmp}"
export HF_HOME="${HF_HOME:-$volume/hub}"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$volume/cache}"
export PYTHONDONTWRITEBYTECODE=1

command -v "$server" >/dev/null 2>&1 || fail "no $server: set TRITONSERVER, or use an image that has it"

gpus() { nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader 2>&1; }

library() { # the version of an engine's library, from the first module of those named that imports
    for module in "$@"; do
        python3 -c "import $module; print($module.__version__)" 2>/dev/null && return
    done
    return 1
}

version_of() {
    case $1 in
        tensorrt) library tensorrt ;;
        tensorrt-rtx) library tensorrt_rtx tensorrt_rtx_bindings ;;
    esac
}

planner() { # the engine that plans can be built for here; nothing where none can
    gpus >/dev/null || return 0
    for kind in tensorrt tensorrt-rtx; do
        if version_of "$kind" >/dev/null; then
            echo "$kind"
            return 0
        fi
    done
}

bundle() { # finds or builds the bundle for engine $1, and names it in AUTOGAZE_BUNDLE
    machine=cpu
    if [ "$1" != onnxruntime ]; then
        found=$(gpus) ||
            fail "engine $1 needs a GPU, but none was found ($found): give the container one, or set AUTOGAZE_ENGINE"
        # Plans belong to a GPU and to the very version of the library.
        machine=$(printf '%s\n' "$found" | sort -u; version_of "$1" || echo "no library")
    fi
    version=$(python3 -c 'from importlib.metadata import version; print(version("autogaze-triton"))')
    key=$(printf '%s\n' "$version" "$checkpoint" "${AUTOGAZE_REVISION:-}" "$1" "${AUTOGAZE_BUILD_ARGS:-}" "$machine" |
        sha256sum | cut -c 1-16)
    AUTOGAZE_BUNDLE=$volume/bundles/$key
    [ ! -f "$AUTOGAZE_BUNDLE/manifest.json" ] || return 0
    say "building $checkpoint for $1 ($machine) in $AUTOGAZE_BUNDLE"
    unfinished=$volume/bundles/.building
    rm -rf "$unfinished"
    # shellcheck disable=SC2086 # the arguments are words
    if autogaze build "$checkpoint" "$unfinished" --engine "$1" \
        ${AUTOGAZE_REVISION:+--revision "$AUTOGAZE_REVISION"} ${AUTOGAZE_BUILD_ARGS:-} >&2; then
        mv "$unfinished" "$AUTOGAZE_BUNDLE"
    else
        rm -rf "$unfinished"
        return 1
    fi
}

if [ -z "${AUTOGAZE_BUNDLE:-}" ] && [ -z "${AUTOGAZE_REPOSITORY:-}" ]; then
    checkpoint=${AUTOGAZE_CHECKPOINT:-open}
    engine=${AUTOGAZE_ENGINE:-auto}
    if ! { mkdir -p "$volume/bundles" && [ -w "$volume/bundles" ]; }; then
        fail "$volume cannot be written by user $(id -u): mount a volume there that this user owns"
    fi
    # Replicas that share the volume build one after another; the second finds what the first built.
    exec 9>"$volume/bundles/.lock"
    flock 9
    case $engine in
        auto)
            plans=$(planner)
            if [ -z "$plans" ] || ! bundle "$plans"; then
                [ -z "$plans" ] || say "no plans for $plans could be built; the reason is above; serving without them"
                bundle onnxruntime || fail "the bundle could not be built; the reason is above"
            fi ;;
        tensorrt | tensorrt-rtx) bundle "$engine" || fail "the plans could not be built; the reason is above" ;;
        # Every other engine takes the graphs; one that does not exist is the server's to refuse.
        *) bundle onnxruntime || fail "the bundle could not be built; the reason is above" ;;
    esac
    flock -u 9
    exec 9>&-
fi

[ -z "${AUTOGAZE_BUNDLE:-}" ] || export AUTOGAZE_BUNDLE
repository=$(python3 -c '
import os
from pathlib import Path
from autogaze_backend.serving import model_repository_path
from autogaze_backend.serving.instances import instance_counts, with_instances
named = os.environ.get("AUTOGAZE_REPOSITORY")
print(with_instances(Path(named) if named else model_repository_path(), instance_counts()))') ||
    fail "the model repository cannot be used; the reason is above"

case ${AUTOGAZE_MPS:-0} in
    0 | 1) ;;
    *) fail "AUTOGAZE_MPS is '$AUTOGAZE_MPS'; it must be 0 or 1" ;;
esac
if [ "${AUTOGAZE_MPS:-0}" = 1 ]; then
    export CUDA_MPS_PIPE_DIRECTORY="${CUDA_MPS_PIPE_DIRECTORY:-/tmp/autogaze-mps}"
    export CUDA_MPS_LOG_DIRECTORY="${CUDA_MPS_LOG_DIRECTORY:-/tmp/autogaze-mps}"
    mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"
    # It ends with the container.
    nvidia-cuda-mps-control -d || fail "AUTOGAZE_MPS is 1, but nvidia-cuda-mps-control does not start; the reason is above"
fi

say "serving $repository${AUTOGAZE_BUNDLE:+ with $AUTOGAZE_BUNDLE}"
# The server takes this process's place, so that it gets the container's signals.
exec "$server" --model-repository="$repository" --exit-timeout-secs="${AUTOGAZE_EXIT_SECONDS:-30}" "$@"
