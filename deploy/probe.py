#!/usr/bin/env python3
"""Asks a Triton server on this machine whether it and its models are ready; for probes of containers.

    autogaze-probe [URL] [MODEL ...]

Status 0 when they are, else 1 and a line that says what is not. /v2/health/ready alone does not tell: from Triton
26.04 on the models' own canary answers at /v2/models/MODEL/ready, and only there.
"""

import sys
import urllib.error
import urllib.request

URL = "http://127.0.0.1:8000"
MODELS = ("autogaze_generate", "autogaze_stream")
# Triton itself gives a canary 5 s.
SECONDS = 6.0


def fault(url: str) -> str | None:
    """What is wrong at a URL; None where nothing is."""
    try:
        # No proxy: the server is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"{url}: status {error.code}"
    except OSError as error:
        return f"{url}: {error}"


def main(arguments: list[str]) -> int:
    """Asks the server, then each model."""
    base, models = (arguments[0].rstrip("/") if arguments else URL), arguments[1:] or MODELS
    for path in ("/v2/health/ready", *(f"/v2/models/{model}/ready" for model in models)):
        found = fault(base + path)
        if found is not None:
            sys.stderr.write(f"not ready: {found}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
