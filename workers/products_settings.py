"""What a site decides about products: where their tables are, how patient ingest is, how much a host may do at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from workers.room_settings import Model
from workers.targets import CONTROL


class Products(Model):
    """Incoming files and what is built from them. Missions themselves are loaded: `headrace products load FILE`."""

    database: str = CONTROL
    settle_seconds: float = Field(default=5, ge=0, description="a file that has not changed for so long is taken in")
    sweep_seconds: float = Field(default=60, gt=0, description="between two looks at folders and stale products")
    requeue_seconds: float = Field(default=60, gt=0, description="age at which a message counts as lost")
    batch_files: int = Field(default=200, ge=1, le=5000, description="files taken in by one transaction")
    slice_seconds: float = Field(default=20, gt=0, description="after this a message ends and another one goes on")
    lanes: int | None = Field(default=None, ge=1, le=256, description="builds at once; default: worker.concurrency - 1")
    cpus: int | None = Field(default=None, ge=1, description="of this host, for builds; default: all")
    memory_bytes: int | None = Field(default=None, ge=1, description="of this host, for builds; default: all")
    timeout_seconds: float | None = Field(default=None, gt=0, description="of a code that declares none")
    code_memory_bytes: int | None = Field(default=None, ge=1, description="of a code that declares none")
    output_bytes: int | None = Field(default=None, ge=1, description="what a code may write, unless it declares that")
    inspector_seconds: float = Field(default=30, gt=0, description="per file and inspector")
    retry_seconds: float = Field(default=2, gt=0, description="before the second attempt; each later one waits 5 times")
    log_bytes: int = Field(default=64_000, ge=0, description="kept of each run's stdout and stderr: its end")
    scratch_dir: Path | None = Field(default=None, description="default: .headrace below the mission's root")
    check_hours: float | None = Field(default=24, gt=0, description="between two checks of the disk; null: none")
    deep_check: bool = Field(default=False, description="it hashes every file, not only changed ones")
    connections_alarm: int = Field(default=50, ge=1, description="open connections of Headrace that are too many")
    history_days: int = Field(default=365, ge=1, description="of builds that made nothing that is still there")
