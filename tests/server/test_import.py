"""The pack delays the host's start by its own modules only: all that is heavy is imported when it is first needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.conftest import HOST, ROOT

# What main.py imports before custom nodes, then the pack as the host imports it, and its list of nodes.
PROGRAM = """
import asyncio, importlib.util, json, sys, time
from pathlib import Path

sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import execution, nodes, server
before = set(sys.modules)
started = time.process_time()
root = Path(ROOT)
spec = importlib.util.spec_from_file_location("pack", root / "__init__.py", submodule_search_locations=[str(root)])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)

async def load():
    extension = await pack.comfy_entrypoint()
    await extension.on_load()
    return await extension.get_node_list()

listed = [node.GET_SCHEMA().node_id for node in asyncio.run(load())]
seconds = time.process_time() - started
print(json.dumps({"new": sorted(set(sys.modules) - before), "nodes": listed, "seconds": seconds}))
"""


def test_the_pack_imports_nothing_that_the_host_has_not_imported(tmp_path):
    program = PROGRAM.replace("ROOT", repr(str(ROOT)))
    environ = {**os.environ, "PYTHONPATH": str(HOST)}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=environ,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert len(found["nodes"]) >= 25
    own = [name for name in found["new"] if name.split(".")[0] == "pack"]
    assert len(own) > 100
    known = {"pack", *sys.stdlib_module_names}
    assert not {name.split(".")[0] for name in found["new"]} - known
    # of the processor, with compiling; transformers' models alone took more
    assert found["seconds"] < 3
