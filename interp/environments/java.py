"""Java games in a process of their own, which ends with this one however it ends.

>>> engine = Engine("scienceworld", "scienceworld.jar", "pip install scienceworld")
>>> game = engine.jvm.scienceworld.runtime.pythonapi.PythonInterface()
>>> engine.close()
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import weakref
from typing import Any

#: A small heap of one collector; and identity hashes that are numbered, not drawn, since the games' tables
#: are ordered by them.
OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")


def missing(package: str, install: str) -> str:
    """What playing a Java game lacks, as a sentence's end ("" where nothing)."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed ({install})"
    if shutil.which("java") is None:
        return "Java is not installed, or not on PATH (Debian: apt-get install default-jre-headless)"
    return ""


class Engine:
    """A Java process with a package's JAR, reached through a local port that asks for a secret.

    Java ends when `close` is called, when the object is no longer referred to, and when this process ends or
    is killed: its standard input is a pipe from here, and it leaves when that closes. An interrupt from the
    keyboard reaches this process alone. Raises ImportError where the package or Java is missing.
    """

    def __init__(self, package: str, jar: str, install: str):
        if lacking := missing(package, install):
            raise ImportError(f"Its games cannot be played: {lacking}. Recorded decisions work without it.")
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        # what fails is raised; objects that outlive their Java are no failure
        logging.getLogger("py4j").setLevel(logging.CRITICAL)
        spec = importlib.util.find_spec(package)
        folder = list(spec.submodule_search_locations or ())[0] if spec else ""
        port, secret, self.process = launch_gateway(
            classpath=os.path.join(folder, jar),
            javaopts=list(OPTIONS),
            cwd=folder,
            die_on_exit=True,
            enable_auth=True,
            create_new_process_group=True,
            return_proc=True,
        )
        self._gateway = JavaGateway(
            gateway_parameters=GatewayParameters(port=port, auth_token=secret), java_process=self.process
        )
        self.jvm = self._gateway.jvm
        self.close = weakref.finalize(self, _end, self._gateway, self.process)


def _end(gateway: Any, process: subprocess.Popen) -> None:
    gateway.close(keep_callback_server=True)  # our sockets; asking Java to leave politely can hang
    process.kill()
    process.wait()
