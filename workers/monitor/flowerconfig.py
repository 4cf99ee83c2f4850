"""Flower's configuration file: loopback, always a login, the Headrace page and metrics inside.

Flower executes this file and takes the names that are its options; an option of the command line still wins.
"""

from workers.monitor.readable import TASK_COLUMNS as tasks_columns  # noqa: F401, N811
from workers.monitor.readable import format_task  # noqa: F401
from workers.monitor.startup import prepare as _prepare

_chosen = _prepare()

address = _chosen.address
port = _chosen.port
basic_auth = _chosen.basic_auth
persistent = False  # history is in PostgreSQL; Flower's own file would only hold a second, shorter one
