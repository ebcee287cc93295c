"""The graph as Argo Workflows runs it: a WorkflowTemplate, made by Hera, and the ConfigMap with the cluster's file.

A step is a pod that runs the component's command and writes the artifact's URI to a file, which Argo reads as an output
parameter; nothing but URIs travels. What trains, or asks for GPUs, is launched: its pod is small, runs
`relic launch --backend pytorchjob` around that command and follows the job to its end.

What had to be known of Argo 4.0, read in its source and seen on a cluster:

- The outputs of a fan-out are a JSON list in the order of the parts, whatever order they end in; keys depend on that.
- A pod that ended without an exit code (evicted, its node gone) counts as "-1", and what the controller could not do as
  the status Error. Too little memory or disk, and the deadline, also end a pod by a signal, and are no reason to try
  again. RETRIED tells them by the beginning of the message; where a pod left no sentence, the rest is its log.
- A retry's expression that is false becomes the node's message. So what has a sentence for a person, the preflight, is
  retried without one, and the sentence of any other step is its attempt's.
- A failed DAG has no message: `kubectl get wf` says Failed, the failed pod says why.
- Argo's containers `init` and `wait` have no securityContext of their own; the patch makes them fit for restricted Pod
  Security, and small.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from relic import pods, steps, tracking
from relic.cluster import Cluster, Pool
from relic.mistakes import UserError, allowed
from relic.pipeline import document
from relic.pipeline.component import Component
from relic.pipeline.graph import Graph, Parameter, Step

try:
    from hera.workflows import DAG, Container, Steps, Task, WorkflowTemplate, models
    from hera.workflows import Parameter as Value
    from hera.workflows import Step as Call
except ModuleNotFoundError as error:
    raise UserError(f"rendering needs {error.name}; install the extra: pip install 'relic[cluster]'") from error

ENTRY, PREFLIGHT, EXIT, END = "steps", "preflight", "exit", "end"
RUN = "parent-run"  # MLflow's run of the whole workflow: an output of the preflight that all templates see
PREFLIGHT_S = 110  # so that a control image that does not exist ends a run within two minutes of having a node
END_S = 300
WITHOUT, WITH_MLFLOW = "256Mi", "512Mi"  # memory of the control image; its clients take 100 MiB and 230 MiB
SET = ("recipe", "store", "parts", "nodes", "deploy")  # of the parameters, those that the first and the last pod take
DEPLOY = "deploy"  # the component that a person may leave out
RETRIED = """\
(lastRetry.status == "Error" and not (lastRetry.message matches "forbidden|is invalid"))
or (lastRetry.status == "Failed" and lastRetry.exitCode in ["-1", "70", "75", "137", "143"]
    and not (lastRetry.message matches
      "^(main: OOMKilled|Pod was active on|Usage of EmptyDir|Pod ephemeral|Container main exceeded)"))
"""  # of exit codes relic/verdict.py has the table; 137 and 143 are SIGKILL and SIGTERM
# Whether the preflight itself has failed, and not a try of it, which is called preflight(0).
BEGUN = f"{{{{=workflow.failures matches 'displayName[^a-z]+{PREFLIGHT}[^a-z(]' ? 'no' : 'yes'}}}} == yes"
LABELS = {"app.kubernetes.io/part-of": "relic"}


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What a workflow is made of."""

    workflow: str  # the file of workflows/ that the graph is from, by which a run's first pod finds it in its image
    graph: Graph
    cluster: Cluster
    table: Mapping[str, steps.Step]
    components: Mapping[str, Component]
    recipes: Collection[str]


def render(source: Rendering, cluster_file: str) -> str:
    """Two YAML documents. `cluster_file` is the text that `source.cluster` was read from."""
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": pods.CONFIG_MAP, "labels": LABELS},
        "data": {"cluster.yaml": cluster_file},
    }
    return document.dump([config, workflow(source).to_dict()])


def workflow(source: Rendering) -> WorkflowTemplate:
    graph, cluster = source.graph, source.cluster
    return WorkflowTemplate(
        name=graph.name,
        labels=LABELS,
        annotations={
            "workflows.argoproj.io/title": graph.name,
            "workflows.argoproj.io/description": graph.about,
        },
        workflow_metadata=typed(models.WorkflowMetadata, {"labels": LABELS}),
        entrypoint=ENTRY,
        on_exit=EXIT,
        arguments=[parameter(source, found) for found in parameters(source)],
        service_account_name=cluster.accounts.step,
        image_pull_secrets=list(cluster.images.pull_secrets) or None,
        security_context=typed(models.PodSecurityContext, pods.POD_SECURITY),
        pod_metadata=typed(models.Metadata, {"labels": LABELS}),
        pod_spec_patch=document.dump([executor()]),
        parallelism=cluster.parallelism,
        pod_gc=typed(models.PodGC, {"strategy": "OnPodSuccess", "deleteDelayDuration": "10m"}),
        ttl_strategy=typed(models.TTLStrategy, {"secondsAfterCompletion": cluster.keep_s}),
        templates=[
            DAG(name=ENTRY, tasks=[Task(name=PREFLIGHT, template=PREFLIGHT), *map(task, graph.ordered())]),
            preflight(source),
            *(template(source, step) for step in graph.ordered()),
            Steps(name=EXIT, sub_steps=[Call(name=END, template=END, when=BEGUN)]),
            end(source),
        ],
    )


def executor() -> dict[str, Any]:
    """What Argo's own containers get."""
    resources = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}}
    theirs = {"securityContext": pods.CONTAINER_SECURITY, "resources": resources}
    return {"initContainers": [{"name": "init", **theirs}], "containers": [{"name": "wait", **theirs}]}


# What a person sets


def parameters(source: Rendering) -> list[Parameter]:
    """The graph's, with the cluster's defaults, and those that only a cluster has."""
    cluster, graph = source.cluster, source.graph
    defaults = {"recipe": cluster.recipe, "store": cluster.store, "parts": str(cluster.parts)}
    found = [replace(one, default=defaults.get(one.name, one.default)) for one in graph.parameters]
    if any(step.component == DEPLOY for step in graph.steps):
        found.append(Parameter(name="deploy", default="yes", about="whether what passes the gate is served"))
    if trained := [step for step in graph.steps if source.table[step.component].trains]:
        nodes = cluster.pool(trained[0].pool).nodes
        found.append(Parameter(name="nodes", default=nodes, about="pods of a training; MIN:MAX may come and go"))
    return found


def parameter(source: Rendering, found: Parameter) -> Value:
    choices = {"recipe": [*source.recipes], "deploy": ["yes", "no"]}
    return Value(name=found.name, value=found.default, description=found.about, enum=choices.get(found.name))


def said(name: str) -> str:
    """The place of what a person has set."""
    return f"{{{{workflow.parameters.{name}}}}}"


# Steps


def task(step: Step) -> Task:
    artifacts = {
        name: f"{{{{tasks.{source.step}.outputs.parameters.artifact}}}}" for name, source in step.inputs.items()
    }
    given = {**artifacts, **({"part": "{{item}}"} if step.fan_out else {})}
    sources = dict.fromkeys(source.step for source in step.inputs.values())
    parts = {"count": said(step.fan_out.parts)} if step.fan_out else None
    return Task(
        name=step.name,
        template=step.name,
        dependencies=list(sources) or [PREFLIGHT],
        arguments=[Value(name=name, value=value) for name, value in given.items()],
        with_sequence=typed(models.Sequence, parts) if parts else None,
        when=f"{said('deploy')} == yes" if step.component == DEPLOY else None,
    )


def template(source: Rendering, step: Step) -> Container:
    """The pod of a step: in the component's image on the step's pool, or launching it from a small one."""
    cluster, component = source.cluster, source.components[step.component]
    pool, trains = cluster.pool(step.pool), source.table[step.component].trains
    outputs = {name: f"/tmp/{name}" for name in component.outputs}
    line = component.command_line(values=values(source.graph, step, component), paths=outputs)
    inputs = [*step.inputs, *(["part"] if step.fan_out else [])]
    more = {tracking.PARENT: f"{{{{workflow.outputs.parameters.{RUN}}}}}"}
    keys = cluster.serving.keys_secret if cluster.serving and step.component == DEPLOY else ""
    launched = trains or pool.gpus > 0  # and may wait in a queue: its job has a deadline of its own
    if launched:
        nodes = ["--nodes", said("nodes")] if trains else []
        line = ["relic", "launch", "--backend", "pytorchjob", "--pool", step.pool, *nodes, "--", *line]
        image, account, pool = cluster.images.control, cluster.accounts.launcher, small(cluster, WITHOUT)
    else:
        image = image_of(cluster, component)
        account = cluster.accounts.deploy if step.component == DEPLOY else cluster.accounts.step
    return pod(
        cluster, step.name, line, image=image, account=account, pool=pool, inputs=inputs, outputs=outputs, more=more,
        keys=keys, retried=models.RetryStrategy(
            limit=models.IntOrString(root=cluster.retries),
            retry_policy="Always",
            expression=RETRIED,
            backoff=typed(models.Backoff, {"duration": "10s", "factor": 2, "cap": "5m"}),
        ),
        deadline_s=None if launched else cluster.step_s,
    )  # fmt: skip


def values(graph: Graph, step: Step, component: Component) -> dict[str, str]:
    """What a component's inputs are given."""
    own = {name: f"{{{{inputs.parameters.{name}}}}}" for name in step.inputs}
    if step.fan_out:
        own = {"part": "{{inputs.parameters.part}}", "parts": said(step.fan_out.parts), **own}
    known = {**{name: said(name) for name in graph.defaults}, **own}
    if unknown := sorted(set(component.inputs) - set(known)):
        raise UserError(f"{step.name} is given no {unknown[0]!r}; {allowed(unknown[0], list(known))}")
    return {name: known[name] for name in component.inputs}


def image_of(cluster: Cluster, component: Component) -> str:
    """`relic/train:0.1.0` of a component.yaml names the cluster's image `train`."""
    images = {"train": cluster.images.train, "serve": cluster.images.serve, "control": cluster.images.control}
    name = component.image.rpartition("/")[2].partition(":")[0]
    if name not in images:
        raise UserError(f"component {component.name} wants the image {component.image}; {allowed(name, list(images))}")
    return images[name]


# Before and after


def preflight(source: Rendering) -> Container:
    """Looks at what a person has set and at the cluster, and opens MLflow's run."""
    cluster, line = source.cluster, ["relic", "pipeline", "begin", *given(source), "--run", "/tmp/run"]
    return pod(
        cluster, PREFLIGHT, line, image=cluster.images.control, account=cluster.accounts.launcher,
        pool=small(cluster, WITH_MLFLOW), outputs={RUN: "/tmp/run"}, deadline_s=PREFLIGHT_S,
        retried=on_error(cluster), optional=True,
    )  # fmt: skip


def end(source: Rendering) -> Container:
    """Ends MLflow's run and the jobs that are left, however the workflow ended, unless its preflight has failed."""
    cluster, line = source.cluster, ["relic", "pipeline", "end", *given(source), "--status", "{{workflow.status}}"]
    return pod(
        cluster, END, line, image=cluster.images.control, account=cluster.accounts.launcher,
        pool=small(cluster, WITH_MLFLOW), deadline_s=END_S, retried=on_error(cluster),
    )  # fmt: skip


def given(source: Rendering) -> list[str]:
    """What a person has set, as options."""
    names = [found.name for found in parameters(source) if found.name in SET]
    return ["--workflow", source.workflow, *(word for name in names for word in (f"--{name}", said(name)))]


def on_error(cluster: Cluster) -> models.RetryStrategy:
    """For who has a sentence to say: without an expression, Argo gives the node its attempt's message."""
    return models.RetryStrategy(limit=models.IntOrString(root=cluster.retries), retry_policy="OnError")


# Pods


def small(cluster: Cluster, memory: str) -> Pool:
    """The nodes for CPU work, for what only talks to servers."""
    pool = cluster.pool("cpu")
    return replace(pool, cpu="50m", memory=memory, scratch="1Gi", shared_memory="16Mi", resources={})


def pod(
    cluster: Cluster, name: str, line: list[str], *, image: str, account: str, pool: Pool,
    retried: models.RetryStrategy, deadline_s: int | None, inputs: Collection[str] = (),
    outputs: Mapping[str, str] | None = None, more: Mapping[str, str] | None = None, keys: str = "",
    optional: bool = False,
) -> Container:  # fmt: skip
    """A template of one container. `outputs` are files that become parameters, `more` are variables, `keys` is the
    secret with the API key of the roll-out; `optional` says that it starts without the secrets too."""
    known = {tracking.WORKFLOW: "{{workflow.name}}", tracking.WORKFLOW_UID: "{{workflow.uid}}", **(more or {})}
    return Container(
        name=name,
        labels={pods.STEP: name},
        inputs=[Value(name=name) for name in inputs] or None,
        outputs=[output(name, path) for name, path in (outputs or {}).items()] or None,
        service_account_name=account if account != cluster.accounts.step else None,
        node_selector=dict(pool.node_selector) or None,
        priority_class_name=pool.priority_class or None,
        tolerations=[typed(models.Toleration, one) for one in pods.tolerations(pool)] or None,
        active_deadline_seconds=deadline_s,
        retry_strategy=retried,
        image=image,
        image_pull_policy=cluster.images.pull_policy,
        command=line[:1],  # without it the controller asks a registry
        args=line[1:],
        env=[typed(models.EnvVar, one) for one in [*pods.environment(cluster, pool, **known), *api_key(keys)]],
        env_from=[typed(models.EnvFromSource, one) for one in pods.secrets(cluster, optional=optional)] or None,
        resources=typed(models.ResourceRequirements, pods.resources(cluster, pool)),
        security_context=typed(models.SecurityContext, pods.CONTAINER_SECURITY),
        termination_message_policy="FallbackToLogsOnError",  # for who left no sentence
        volume_mounts=[typed(models.VolumeMount, one) for one in pods.MOUNTS],
        volumes=[typed(models.Volume, one) for one in pods.volumes(pool)],
    )


def api_key(secret: str) -> list[dict[str, Any]]:
    found = {"secretKeyRef": {"name": secret, "key": "deploy"}}
    return [{"name": "RELIC_API_KEY", "valueFrom": found}] if secret else []


def output(name: str, path: str) -> Value:
    return Value(name=name, value_from=models.ValueFrom(path=path), global_name=name if name == RUN else None)


def typed(kind: Any, said: Mapping[str, Any]) -> Any:
    """A model of Hera's; it drops what it does not know, so that is compared."""
    made = kind.model_validate(said)
    assert made.model_dump(exclude_none=True, by_alias=True) == said, f"Hera loses something of {said}"
    return made
