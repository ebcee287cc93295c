"""From recorded walks to a world to walk in: the wiring of the components. Run by `relic pipeline run`."""

from relic.pipeline.graph import FanOut, Graph, Input, Parameter, Step

graph = Graph(
    name="world-model",
    about="record walks, train codec, teacher and four-step student, distil the student, measure all, deploy it",
    parameters=(
        Parameter(name="recipe", default="tiny", about="a function of relic/recipes.py"),
        Parameter(name="store", default="out/demo/store", about="a folder or s3://BUCKET/PREFIX for the artifacts"),
        Parameter(name="parts", default="2", about="parts of the fan-outs"),
    ),
    steps=(
        Step(name="curate", component="curate", fan_out=FanOut("parts")),
        Step(name="join-clips", component="join", inputs={"parts": Input("curate")}),
        Step(name="codec", component="codec", inputs={"clips": Input("join-clips")}, pool="training"),
        Step(name="pose-net", component="pose-net", inputs={"clips": Input("join-clips")}, pool="training"),
        Step(
            name="shard",
            component="shard",
            inputs={"clips": Input("join-clips"), "codec": Input("codec")},
            fan_out=FanOut("parts"),
            pool="gpu",
        ),
        Step(name="join-samples", component="join", inputs={"parts": Input("shard")}),
        Step(name="teacher", component="teacher", inputs={"samples": Input("join-samples")}, pool="training"),
        Step(
            name="trajectories",
            component="trajectories",
            inputs={"teacher": Input("teacher"), "samples": Input("join-samples")},
            fan_out=FanOut("parts"),
            pool="gpu",
        ),
        Step(
            name="student-init",
            component="student-init",
            inputs={
                "teacher": Input("teacher"),
                "samples": Input("join-samples"),
                "trajectories": Input("trajectories"),
            },
            pool="training",
        ),
        Step(
            name="distill",
            component="distill",
            inputs={"teacher": Input("teacher"), "student": Input("student-init"), "samples": Input("join-samples")},
            pool="training",
        ),
        Step(
            name="evaluate",
            component="evaluate",
            inputs={
                "clips": Input("join-clips"),
                "codec": Input("codec"),
                "estimator": Input("pose-net"),
                "teacher": Input("teacher"),
                "student": Input("student-init"),
                "distilled": Input("distill"),
            },
            pool="gpu",
        ),
        Step(
            name="export",
            component="export",
            inputs={"student": Input("distill"), "codec": Input("codec"), "evaluation": Input("evaluate")},
        ),
        Step(
            name="deploy",
            component="deploy",
            inputs={"export": Input("export"), "evaluation": Input("evaluate")},
        ),
    ),
    report="evaluate",
    world="export",
)
