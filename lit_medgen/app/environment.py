"""What gradio reads from the environment, set before it is imported."""

from __future__ import annotations

import os

HOST = "127.0.0.1"
IGNORED = ("GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH", "GRADIO_SERVER_PORT", "GRADIO_NUM_WORKERS")
"""Variables that would serve other folders, another address or port, or by more processes."""


def isolate(folder: str) -> None:
    """Has gradio report to nobody, keep its files in a folder, and reach its own server past any proxy."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=folder
    )
    for name in IGNORED:
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST, "localhost")))
