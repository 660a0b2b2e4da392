"""What every test gets: one torch thread, no windows, no network, hypothesis without deadlines."""

import os
import socket
from pathlib import Path

import hypothesis
import pytest

# One thread per worker, kernel or server that a test starts: there are as many workers as cores, and the last
# digit of a loss depends on the number of threads. Torch reads it when a test file imports it.
os.environ["OMP_NUM_THREADS"] = "1"

# Random examples while developing, the same ones in CI; a shared machine makes deadlines meaningless.
hypothesis.settings.register_profile("house", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.register_profile("long", deadline=None, max_examples=500)
hypothesis.settings.load_profile("house")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay on one worker, and so do all browser tests: two browsers starve each other."""
    from xdist.scheduler import LoadFileScheduling

    class OneBrowser(LoadFileScheduling):
        def _split_scope(self, nodeid):
            browser = "tests/browser/"
            return browser if nodeid.startswith(browser) else super()._split_scope(nodeid)

    return OneBrowser(config, log)


@pytest.fixture(autouse=True, scope="session")
def no_windows():
    """Figures are drawn off screen. Not by MPLBACKEND: a notebook kernel would inherit it and show none."""
    import matplotlib

    matplotlib.use("Agg")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Only this machine can be reached. Not an OSError: who forgives one would hide the attempt."""

    def guarded(connect):
        def check(sock, address):
            internet = sock.family in (socket.AF_INET, socket.AF_INET6)
            if internet and not (address[0] in ("localhost", "::1") or address[0].startswith("127.")):
                sock.close()
                raise RuntimeError(f"a test tried to reach {address[0]}: tests run with the network off")
            return connect(sock, address)

        return check

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


@pytest.fixture(scope="session")
def real_data():
    """The folder of real-size data (MNIST, CIFAR-10) that PAI_LAB_DATA names; without it the test skips."""
    folder = os.environ.get("PAI_LAB_DATA")
    if not folder:
        pytest.skip("no real-size data on this machine: PAI_LAB_DATA is not set")
    if not Path(folder).is_dir():
        pytest.fail(f"PAI_LAB_DATA names {folder}, which is no folder")
    return Path(folder)
