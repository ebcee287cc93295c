"""torchrun as a TorchX component. Only torchx loads this file, in an environment of its own, which has no relic."""

from torchx import specs


def torchrun(command: str, nodes: int = 1, cpus: int = 0, gpus: int = 0) -> specs.AppDef:
    """One agent of torchrun a node.

    Args:
        command: what bash runs on each node; there $head is the first node's name and $job the scheduler's id
        nodes: the nodes that the scheduler is asked for
        cpus: cores of a node; 0 leaves it to the scheduler
        gpus: GPUs of a node
    """
    given = f"head=$${{{specs.macros.rank0_env}:=localhost}}; job={specs.macros.app_id}; "
    role = specs.Role(
        name="relic",
        image="",
        entrypoint="bash",
        args=["-c", given + command.replace("$", "$$")],  # torchx takes $ for its own macros
        num_replicas=nodes,
        resource=specs.Resource(cpu=cpus, gpu=gpus, memMB=0),
    )
    return specs.AppDef(name="relic", roles=[role])
