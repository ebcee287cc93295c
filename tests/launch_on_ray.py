"""`launch_on_ray.py FOLDER`: a Ray cluster of two cores that runs trainings of fake_training; prints verdicts as JSON.

A process of its own, for Ray leaves threads behind."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}

import fake_training
from ray.cluster_utils import Cluster

from relic.launch import ray_train
from relic.launch.config import Launch

CASES = {"done": fake_training.together, "killed once, then a mistake": fake_training.command}

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    found = {}
    try:
        for how, command in CASES.items():
            folder = Path(sys.argv[1]) / how
            folder.mkdir()
            config = Launch(
                backend="ray", address=cluster.address, processes="2", cpus=1, gpus=0, job=f"test {folder.parent.name}",
                max_restarts=1,
            )  # fmt: skip
            found[how] = asdict(ray_train.run(config, command, [how, str(folder)]))
    finally:
        cluster.shutdown()
    print(json.dumps(found))
