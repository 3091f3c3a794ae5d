"""PostgreSQL, Valkey and NATS as supervised child processes, for backends that have no URL configured.

`await nursery.start(run_children, data_dir, {"postgres", "redis", "nats"})` returns `Backends`, the
addresses, once all answer. `python -m whispr.embed DATA_DIR` runs them alone, for tests and debugging.
"""

from whispr.embed.folder import DataFolder, check_owner, open_folder, write_private
from whispr.embed.neighbours import find_running
from whispr.embed.process import Process, spawn
from whispr.embed.supervisor import ALL, Backends, Status, run_children

__all__ = [
    "ALL",
    "Backends",
    "DataFolder",
    "Process",
    "Status",
    "check_owner",
    "find_running",
    "open_folder",
    "run_children",
    "spawn",
    "write_private",
]
