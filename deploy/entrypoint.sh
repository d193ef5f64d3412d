#!/bin/sh
# Starts Triton with the AutoGaze models. What a bundle is built from and for decides where it lies in the volume:
# it is built at the first start on a machine of its kind, and found there ever after. Arguments go to tritonserver.
#
#   AUTOGAZE_BUNDLE      a bundle to serve as it is; nothing is built then
#   AUTOGAZE_CHECKPOINT  hub id or folder (default: open)
#   AUTOGAZE_REVISION    branch, tag or commit of a hub id
#   AUTOGAZE_ENGINE      onnxruntime, tensorrt or tensorrt-rtx (default: onnxruntime)
#   AUTOGAZE_BUILD_ARGS  further arguments of 'autogaze build', separated by spaces
#   AUTOGAZE_VOLUME      where bundles and downloads are kept (default: /var/lib/autogaze)
#   AUTOGAZE_REPOSITORY  a model repository of your own (default: the shipped one)
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

if [ -z "${AUTOGAZE_BUNDLE:-}" ] && [ -z "${AUTOGAZE_REPOSITORY:-}" ]; then
    checkpoint=${AUTOGAZE_CHECKPOINT:-open}
    engine=${AUTOGAZE_ENGINE:-onnxruntime}
    if ! { mkdir -p "$volume/bundles" && [ -w "$volume/bundles" ]; }; then
        fail "$volume cannot be written by user $(id -u): mount a volume there that this user owns"
    fi
    version=$(python3 -c 'from importlib.metadata import version; print(version("autogaze-triton"))')
    machine=cpu
    if [ "$engine" != onnxruntime ]; then
        gpus=$(nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader 2>&1) ||
            fail "engine $engine needs a GPU, but none was found ($gpus): give the container one, or set AUTOGAZE_ENGINE"
        machine=$(printf '%s\n' "$gpus" | sort -u)
    fi
    key=$(printf '%s\n' "$version" "$checkpoint" "${AUTOGAZE_REVISION:-}" "$engine" "${AUTOGAZE_BUILD_ARGS:-}" "$machine" |
        sha256sum | cut -c 1-16)
    AUTOGAZE_BUNDLE=$volume/bundles/$key
    # Replicas that share the volume build one after another; the second finds what the first built.
    exec 9>"$volume/bundles/.lock"
    flock 9
    if [ ! -f "$AUTOGAZE_BUNDLE/manifest.json" ]; then
        say "building $checkpoint for $engine ($machine) in $AUTOGAZE_BUNDLE"
        unfinished=$volume/bundles/.building
        rm -rf "$unfinished"
        # shellcheck disable=SC2086 # the arguments are words
        autogaze build "$checkpoint" "$unfinished" --engine "$engine" \
            ${AUTOGAZE_REVISION:+--revision "$AUTOGAZE_REVISION"} ${AUTOGAZE_BUILD_ARGS:-} >&2 ||
            fail "the bundle could not be built; the reason is above"
        mv "$unfinished" "$AUTOGAZE_BUNDLE"
    fi
    flock -u 9
    exec 9>&-
fi

[ -z "${AUTOGAZE_BUNDLE:-}" ] || export AUTOGAZE_BUNDLE
repository=${AUTOGAZE_REPOSITORY:-$(python3 -c \
    'from autogaze_backend.serving import model_repository_path; print(model_repository_path())')}

say "serving $repository${AUTOGAZE_BUNDLE:+ with $AUTOGAZE_BUNDLE}"
# The server takes this process's place, so that it gets the container's signals.
exec "$server" --model-repository="$repository" --exit-timeout-secs="${AUTOGAZE_EXIT_SECONDS:-30}" "$@"
