"""A step's command line, read: which artifact it asks for. Loads no torch.

Who performs the step and who only has to know its artifact, such as a launcher, read it here."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from relic import steps, stores
from relic.options import about, parse, uris, value_of


@dataclass(frozen=True, kw_only=True)
class Call:
    """`relic STEP --recipe NAME --store URI [--INPUT URI…] [--config.DIAL VALUE…]`"""

    step: steps.Step
    recipe: Any
    store: str
    inputs: dict[str, list[str]]
    config: Any = None
    part: int = 0
    parts: int = 1
    ray: str = ""
    parallel: Any = None
    artifact: str = ""  # a file that receives the artifact's URI

    @property
    def key(self) -> str:
        return steps.key(
            self.step, steps.parameters(self.step, self.config, part=self.part, parts=self.parts), self.inputs
        )

    @property
    def uri(self) -> str:
        return stores.open_store(self.store).uri(self.step.name, self.key)

    def is_finished(self) -> bool:
        return stores.open_store(self.store).manifest(self.step.name, self.key) is not None

    def perform(self) -> str:
        """Make the artifact, or find it finished. Returns its URI."""
        return steps.perform(
            self.step, self.config, store=self.store, inputs=self.inputs, part=self.part, parts=self.parts,
            ray=self.ray, parallel=self.parallel,
        )  # fmt: skip

    def say(self, uri: str) -> None:
        """Tell who called where the artifact is."""
        if self.artifact:
            Path(self.artifact).parent.mkdir(parents=True, exist_ok=True)
            Path(self.artifact).write_text(uri)
        print(uri, flush=True)


def read(found: steps.Step, args: list[str], named: Any) -> Call:
    """The call that a step's options make; `named` gives the recipe of a name."""
    recipe = named(value_of(args, "--recipe", "tiny"))
    config = getattr(recipe, found.config) if found.config else None
    options: list[Any] = [
        ("recipe", Annotated[str, about("the recipe whose dials are the defaults")], "tiny"),
        ("store", Annotated[str, about("where artifacts are kept: a folder or s3://BUCKET/PREFIX")], "out/demo/store"),
    ]
    options += [
        (name, Annotated[tuple[str, ...], about("artifact URIs, or a JSON list of them")], ()) for name in found.inputs
    ]
    if found.fan_out:
        options.append(("part", Annotated[int, about("which part of the fan-out, from 0")], 0))
        options.append(("parts", Annotated[int, about("parts of the fan-out")], 1))
    if found.ray:
        said = "a Ray cluster whose workers do the work: HOST:PORT, auto, or local for this machine; empty: none"
        options.append(("ray", Annotated[str, about(said)], ""))
    if found.trains:
        options.append(("parallel", type(recipe.parallel), field(default=recipe.parallel)))
    options.append(("artifact", Annotated[str, about("a file that receives the artifact's URI")], ""))
    if config is not None:
        options.append(("config", type(config), field(default=config)))
    kind = make_dataclass("Options", options, frozen=True, kw_only=True)
    chosen = vars(parse(kind, args, f"relic {found.name}", found.about))
    names = ["store", "artifact", *(["part", "parts"] if found.fan_out else [])]  # else an input may be called so
    names += [name for name in ("ray", "parallel", "config") if name in chosen]
    own = {name: chosen[name] for name in names}
    return Call(step=found, recipe=recipe, inputs={name: uris(name, chosen[name]) for name in found.inputs}, **own)
