"""Starting the explorer: what it may open, where it listens, how it looks."""

import os
import socket
import sys
from pathlib import Path

from engram_app.explorer.opened import OPENED, Opened
from engram_model.errors import UsageError

HOST = "127.0.0.1"
SWITCHED = 0.0005  # seconds; a model yields to other sessions at each of its many operations
INK, PAPER = "#12161B", "#FFFFFF"
NIGHT, CHALK = "#11151B", "#E8EBEF"
THEME = {
    "light": {
        "primaryColor": "#0060A0",
        "backgroundColor": PAPER,
        "secondaryBackgroundColor": "#F5F6F8",
        "textColor": INK,
        "borderColor": "#DDE1E6",
        "linkColor": "#0060A0",
    },
    "dark": {
        "primaryColor": "#56B4E9",
        "backgroundColor": NIGHT,
        "secondaryBackgroundColor": "#1A2029",
        "textColor": CHALK,
        "borderColor": "#2E3742",
        "linkColor": "#7CC4EE",
    },
}


def serve(paths: list[str], *, port: int = 8501, browser: bool = True) -> None:
    """Serve the explorer on this machine until it is stopped.

    Args:
        paths: checkpoints and folders of saved results; none: the bundled pair.
        port: of 127.0.0.1; 0 takes a free one.
        browser: whether to open one.

    Raises:
        CheckpointError: a path that holds neither a checkpoint nor a result.
        UsageError: the port is taken.
    """
    opened = Opened.find(paths)
    port = _free_port(port)
    os.environ[OPENED] = opened.to_json()
    sys.setswitchinterval(SWITCHED)
    import streamlit as st

    st.App(str(Path(__file__).with_name("app.py"))).run(config=config(port, browser))


def config(port: int, browser: bool = False) -> dict[str, object]:
    """Streamlit's options: loopback only, nothing phoned home, both themes."""
    look = {f"theme.{mode}.{name}": c for mode in THEME for name, c in THEME[mode].items()}
    return {
        "server.address": HOST,
        "server.port": port,
        "server.allowedHosts": ["localhost", HOST],
        "server.headless": not browser,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": 20,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "runner.magicEnabled": False,
        "global.disableWidgetStateDuplicationWarning": True,  # a default, and what was kept
        "theme.baseRadius": "0.4rem",
        "theme.headingFontSizes": ["2.1rem", "1.6rem", "1.25rem"],
        **look,
    }


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {HOST} cannot be used ({error.strerror}); try --port 0"
            ) from None
        return int(probe.getsockname()[1])
