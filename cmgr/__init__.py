"""cmgr: task-aware culture management for language models."""

__version__ = "0.1.0"
