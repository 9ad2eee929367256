"""What a workspace holds, and which stage comes next; reads only."""

from __future__ import annotations

from typing import Any

from cmgr.search import current_evidence
from cmgr.synthesize import current_examples
from cmgr.workspace import Workspace, read_json
