"""Jobs that are never lost: a store on the disk, a worker that runs it, a service in front."""

from pixeldance.jobs.errors import (
    IdempotencyKeyError,
    JobStateError,
    StorageFullError,
    UnknownJobError,
    WorkerBusyError,
)
from pixeldance.jobs.folders import ClipFiles, default_data_folder
from pixeldance.jobs.job import FINAL_STATES, Job, JobClip, JobEvent, JobState, Phase, Preview
from pixeldance.jobs.process import WorkerProcess, WorkerStatus
from pixeldance.jobs.resident import ResidentModel
from pixeldance.jobs.service import JobService
from pixeldance.jobs.storage import Usage
from pixeldance.jobs.store import JobPage, JobStore
from pixeldance.jobs.worker import Worker

__all__ = [
    "FINAL_STATES",
    "ClipFiles",
    "IdempotencyKeyError",
    "Job",
    "JobClip",
    "JobEvent",
    "JobPage",
    "JobService",
    "JobState",
    "JobStateError",
    "JobStore",
    "Phase",
    "Preview",
    "ResidentModel",
    "StorageFullError",
    "UnknownJobError",
    "Usage",
    "Worker",
    "WorkerBusyError",
    "WorkerProcess",
    "WorkerStatus",
    "default_data_folder",
]
