"""The processes behind the dashboard: shared, ended, and gone with it."""

import subprocess
import sys
import threading
import time

import httpx
import pytest

from llmfast.app.servers import Servers

pytestmark = pytest.mark.xdist_group("app")


@pytest.fixture(scope="module")
def servers():
    found = Servers()
    yield found
    found.close()


def test_one_server_for_all_who_ask_a_new_one_for_one_that_died_and_none_once_it_is_unloaded(servers, full):
    """Traps: two sessions load a model twice; a server that died is asked; unloading leaves the process."""
    model = full / "models" / "chat"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(servers.get(model))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server = answers[0]
    assert answers == [server] * 3
    assert list(servers.loaded()) == [model.resolve()]
    assert server.memory > 2**20
    assert httpx.get(f"{server.url}/v1/models").status_code == 401  # others on this machine need the key
    server.process.kill()
    server.process.wait()
    assert servers.loaded() == {}
    again = servers.get(model)
    assert again.process.pid != server.process.pid
    servers.unload(model)
    assert again.process.poll() is not None
    assert servers.loaded() == {}
    servers.unload(model)  # nothing there: nothing happens


def test_what_cannot_be_loaded_says_why(servers, tmp_path):
    with pytest.raises(ValueError, match=r"nothing cannot be loaded: .*nothing is neither a checkpoint"):
        servers.get(tmp_path / "nothing")
    assert servers.loaded() == {}


PROGRAM = """
import sys, time
from pathlib import Path
from llmfast.app.servers import Servers
print(Servers().get(Path(sys.argv[1])).url, flush=True)
time.sleep(600)
"""


def test_servers_end_with_the_dashboard_however_that_ends(full):
    """Trap: a killed dashboard leaves models in memory."""
    command = [sys.executable, "-c", PROGRAM, str(full / "models" / "chat")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dashboard:
        url = dashboard.stdout.readline().strip()
        assert httpx.get(f"{url}/health").status_code == 200
        dashboard.kill()
    assert is_gone(url, seconds=60)


def is_gone(url, seconds):
    """Whether nothing answers any more, within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            return True
        time.sleep(0.1)
    return False
