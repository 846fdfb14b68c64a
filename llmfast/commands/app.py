"""``llmfast app``."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import tyro

# Colors that keep text readable (WCAG AA) on a light and on a dark page.
THEME = {
    "theme.light.primaryColor": "#3949ab",
    "theme.light.textColor": "#0f1114",
    "theme.dark.primaryColor": "#5c6bc0",
    "theme.dark.textColor": "#e8e9ec",
}
HEADINGS = ("1.8rem", "1.3rem")
SETTINGS = {
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "viewer",
    "runner.magicEnabled": "false",
    "server.fileWatcherType": "none",
}


def app(
    folder: tyro.conf.Positional[Path] = Path("."),
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    no_browser: bool = False,
) -> None:
    """Open the dashboard: what there is under a folder, with pages to look at it and to try the models.

    Each model that a page needs is loaded once, by a server process of its own, until it is unloaded in the sidebar or
    the dashboard ends (Ctrl-C).

    Args:
        folder: Where runs, models, data and results are; folders in it are searched.
        host: Address to listen at; 0.0.0.0 for all of this machine's. Whoever reaches it can use the models.
        port: Port to listen at; 0 for any free one.
        no_browser: Only print the address, and open no browser.

    Raises:
        ValueError: no such folder, or a port that is taken.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the one that holds your runs")

    from streamlit.web import cli

    from llmfast.inference.server.run import listen

    with listen(host, port) as free:  # says in a sentence what is wrong with a port
        port = free.getsockname()[1]
    settings = SETTINGS | THEME
    settings |= {"server.address": host, "server.port": str(port), "server.headless": str(no_browser).lower()}
    package = util.find_spec("llmfast.app")
    assert package is not None
    assert package.origin is not None
    program = Path(package.origin).with_name("main.py")
    options = [f"--{name}={value}" for name, value in settings.items()]
    options += [f"--theme.headingFontSizes={size}" for size in HEADINGS]
    cli.main(["run", str(program), *options, "--", str(folder)], standalone_mode=False)
