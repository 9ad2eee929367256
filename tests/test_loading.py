"""cmgr/loading.py: a base that is loaded ahead, and what becomes of one that cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_recipe

CODE = """
import sys
from pathlib import Path
from cmgr import loading

def fails(path):
    raise RuntimeError("no memory to map " + path.name)

loading._open = fails
loading.ahead(["-w", sys.argv[1]])
(path,) = loading._ahead
try:
    loading.open_file(path)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.model
def test_a_base_that_fails_to_open_ahead_is_told_and_not_waited_for(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("no memory to map "), done.stderr
