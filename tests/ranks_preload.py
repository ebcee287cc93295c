"""What the processes of ranks.py share: imported once, by their server."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import relic.train.distill
import relic.train.student_init
import relic.train.teacher  # noqa: F401
