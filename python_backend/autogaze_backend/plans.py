"""Plans on disk: what a TensorRT build left beside a bundle, described by one JSON manifest a folder.

``<bundle>/plans/<engine>-<version>-sm<cc>-<precision>/`` holds a pure plan a bucket (Triton's own backend and
``trtexec`` load it as it is) and ``plans.json``. Reading it needs no TensorRT.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autogaze_client._errors import CheckpointError, NotFoundError, PlanMismatchError

from autogaze_backend.bundle import Bundle, file_sha256
from autogaze_backend.graphs import Phase
from autogaze_backend.plan_records import (
    Agreement,
    Bucket,
    EngineKind,
    GraphVariant,
    Parity,
    Plan,
    PlanTarget,
    PlanTensor,
    agreement_from_json,
    plan_from_json,
    plan_to_json,
)

__all__ = [
    "PLANS_FILE",
    "PLANS_FOLDER",
    "PLANS_FORMAT",
    "Agreement",
    "Bucket",
    "EngineKind",
    "GraphVariant",
    "Parity",
    "Plan",
    "PlanSet",
    "PlanTarget",
    "PlanTensor",
    "load_plan_sets",
    "plan_folders",
]

PLANS_FOLDER = "plans"
PLANS_FILE = "plans.json"
PLANS_FORMAT = 1


@dataclass(frozen=True)
class PlanSet:
    """The verified plans of one target.

    Attributes:
        path: the folder.
        target: what they are for.
        cuda: CUDA version that the library was built with, such as "13.1"; "" where it does not say.
        variant: of the graphs.
        checkpoint: SHA-256 of the checkpoint's weights, as in the bundle's manifest.
        graphs: SHA-256 of the traced graph of each phase.
        inputs: SHA-256 over everything that shaped the plans; a build with the same is skipped.
        version_compatible: whether newer versions of the library run them.
        hardware_compatible: whether other GPUs run them.
        stripped: whether weights are left out; the executor refits them from the bundle at load.
        plans: by bucket, ascending.
        agreement: of ``fast``, measured when it was built; None for ``exact``.
        parity: what a GPU gave; None until ``make test-tensorrt`` has run.
    """

    path: Path
    target: PlanTarget
    cuda: str
    variant: GraphVariant
    checkpoint: str
    graphs: Mapping[Phase, str]
    inputs: str
    version_compatible: bool
    hardware_compatible: bool
    stripped: bool
    plans: Mapping[Bucket, Plan]
    agreement: Agreement | None = None
    parity: Parity | None = None

    @property
    def bundle_path(self) -> Path:
        """The bundle that the folder lies in."""
        return self.path.parent.parent

    @property
    def build_command(self) -> str:
        """The command that builds these plans anew."""
        return self.target.build_command(self.bundle_path)

    def file(self, plan: Plan) -> Path:
        """Path of a plan."""
        return self.path / plan.file

    def buckets(self, phase: Phase) -> tuple[Bucket, ...]:
        """The buckets of a phase, by rows, then length."""
        return tuple(sorted(bucket for bucket in self.plans if bucket.phase is phase))

    def find(self, phase: Phase, rows: int, length: int) -> Plan:
        """The smallest plan that takes ``rows`` rows of ``length`` frames or cache positions.

        Raises:
            PlanMismatchError: no plan is large enough.
        """
        fitting = [b for b in self.buckets(phase) if b.rows >= rows and b.length >= length]
        if not fitting:
            what = "frames" if phase is Phase.ENCODER else "cache positions"
            built = ", ".join(f"{b.rows}×{b.length}" for b in self.buckets(phase)) or "none"
            option = "--frame-buckets" if phase is Phase.ENCODER else "--length-buckets"
            raise PlanMismatchError(
                f"no {phase.value} plan of {self.path} takes {rows} rows of {length} {what} (built: {built}); "
                f"build it with `{self.build_command} --batch-buckets {rows} {option} {length}`"
            )
        return self.plans[min(fitting, key=lambda b: (b.rows * b.length, b.rows))]

    def check_bundle(self, bundle: Bundle) -> None:
        """Checks that the plans were built from the bundle's checkpoint and graphs.

        Raises:
            PlanMismatchError: they were not.
        """
        found = str(bundle.manifest.get("checkpoint", {}).get("sha256", "unknown"))
        if found != self.checkpoint:
            raise PlanMismatchError(
                f"the plans in {self.path} were built from checkpoint {self.checkpoint[:12]}…, but the bundle holds "
                f"{found[:12]}…; build them again with `{self.build_command}`"
            )
        for phase, sha256 in bundle.traced_graphs.items():
            if self.graphs.get(phase) != sha256:
                raise PlanMismatchError(
                    f"the {phase.value} plans in {self.path} were built from graph {self.graphs.get(phase, '')[:12]}…, "
                    f"but the bundle holds {sha256[:12]}…; build them again with `{self.build_command}`"
                )

    def check_runtime(
        self, engine: EngineKind, version: str, compute_capability: tuple[int, int], gpu: str = "this GPU"
    ) -> None:
        """Checks that a library and a GPU can run the plans.

        Args:
            engine: the library that is here.
            version: its version.
            compute_capability: of the GPU that is here.
            gpu: its name, for the message.

        Raises:
            PlanMismatchError: another library, version or compute capability than the plans allow.
        """
        here = replace(self.target, engine=engine, version=version, compute_capability=compute_capability)
        remedy = f"build plans for this machine with `{here.build_command(self.bundle_path)}`"
        if engine is not self.target.engine:
            raise PlanMismatchError(
                f"the plans in {self.path} are for {self.target.engine.value}, which "
                f"{engine.value} cannot run; {remedy}"
            )
        newer = self.version_compatible and _numbers(version) >= _numbers(self.target.version)
        if version != self.target.version and not newer:
            raise PlanMismatchError(
                f"the plans in {self.path} were built with {engine.value} {self.target.version}, but {version} is "
                f"installed; {remedy}"
            )
        if compute_capability != self.target.compute_capability and not self.hardware_compatible:
            raise PlanMismatchError(
                f"the plans in {self.path} are for compute capability {_dotted(self.target.compute_capability)}, but "
                f"{gpu} has {_dotted(compute_capability)}; {remedy}"
            )

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> PlanSet:
        """Reads a folder's manifest and checks every plan against it.

        Args:
            folder: of one target, inside a bundle.
            verify: whether to read the plans and compare their hashes; else only their sizes are compared.

        Raises:
            NotFoundError: there is no such manifest.
            CheckpointError: the manifest is damaged or of another format, or a plan is missing, truncated,
                changed, or outside the folder.
        """
        path = Path(folder).expanduser().resolve()
        rebuild = f"build the plans again with `{_guessed_command(path)}`"
        try:
            values = json.loads((path / PLANS_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"{path} holds no plans ({PLANS_FILE} is missing); {rebuild}") from error
        except OSError as error:
            raise CheckpointError(
                f"{path / PLANS_FILE} cannot be read ({error.strerror}); let the server's user read the bundle"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path / PLANS_FILE} is no valid JSON ({error}); {rebuild}") from error
        found = values.get("format") if isinstance(values, dict) else None
        if found != PLANS_FORMAT:
            raise CheckpointError(
                f"{path} holds plans of format {found}; this version reads {PLANS_FORMAT}; {rebuild}"
            )
        try:
            loaded = _from_json(path, values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path / PLANS_FILE} is damaged ({error!r}); {rebuild}") from error
        for plan in loaded.plans.values():
            _check_file(loaded, plan, verify)
        return loaded

    def write(self) -> Path:
        """Writes the manifest into ``path``, whole or not at all, and gives its path."""
        target = self.path / PLANS_FILE
        staged = target.with_name(f".{PLANS_FILE}.{os.getpid()}")
        try:
            staged.write_text(json.dumps(_to_json(self), indent=2) + "\n", encoding="utf-8")
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)
        return target


def plan_folders(bundle: str | Path) -> tuple[Path, ...]:
    """The folders of plans in a bundle, by name; nothing in them is checked."""
    folder = Path(bundle) / PLANS_FOLDER
    if not folder.is_dir():
        return ()
    # A build in progress is a hidden folder.
    return tuple(sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def load_plan_sets(bundle: str | Path) -> Iterator[tuple[Path, PlanSet | CheckpointError]]:
    """Each folder of plans in a bundle, with what it holds or why it cannot be used; plans are not hashed."""
    for folder in plan_folders(bundle):
        try:
            yield folder, PlanSet.load(folder, verify=False)
        except NotFoundError as error:
            yield folder, CheckpointError(str(error))
        except CheckpointError as error:
            yield folder, error


def _check_file(plans: PlanSet, plan: Plan, verify: bool) -> None:
    path = plans.file(plan)
    rebuild = f"build the plans again with `{plans.build_command}`"
    if Path(plan.file).name != plan.file or path.resolve().parent != plans.path:
        raise CheckpointError(f"{plans.path / PLANS_FILE} names {plan.file}, outside its folder; {rebuild}")
    if not path.is_file():
        raise CheckpointError(f"{plans.path} lacks {plan.file}; {rebuild}")
    size = path.stat().st_size
    if size != plan.size:
        what = "truncated" if size < plan.size else "changed"
        raise CheckpointError(f"{path} is {what}: {size} bytes of {plan.size}; {rebuild}")
    if not verify:
        return
    try:
        found = file_sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); let the server's user read the bundle"
        ) from error
    if found != plan.sha256:
        raise CheckpointError(
            f"{path} has SHA-256 {found[:12]}…, but its manifest says {plan.sha256[:12]}…; {rebuild}"
        )


def _to_json(plans: PlanSet) -> dict[str, Any]:
    target = plans.target
    return {
        "format": PLANS_FORMAT,
        "engine": target.engine.value,
        "version": target.version,
        "cuda": plans.cuda,
        "compute_capability": _dotted(target.compute_capability),
        "precision": target.precision,
        "variant": plans.variant.value,
        "checkpoint": plans.checkpoint,
        "graphs": {phase.value: sha256 for phase, sha256 in plans.graphs.items()},
        "inputs": plans.inputs,
        "version_compatible": plans.version_compatible,
        "hardware_compatible": plans.hardware_compatible,
        "stripped": plans.stripped,
        "agreement": None if plans.agreement is None else asdict(plans.agreement),
        "parity": None if plans.parity is None else asdict(plans.parity),
        "plans": [plan_to_json(plan) for plan in _ordered(plans.plans.values())],
    }


def _from_json(path: Path, values: Mapping[str, Any]) -> PlanSet:
    major, minor = (int(part) for part in values["compute_capability"].split("."))
    plans = _ordered(plan_from_json(item) for item in values["plans"])
    by_bucket = {plan.bucket: plan for plan in plans}
    if not plans or len(by_bucket) != len(plans):
        raise ValueError("no plans, or two of one bucket")
    parity = values["parity"]
    return PlanSet(
        path=path,
        target=PlanTarget(
            EngineKind(values["engine"]), str(values["version"]), (major, minor), str(values["precision"])
        ),
        cuda=str(values["cuda"]),
        variant=GraphVariant(values["variant"]),
        checkpoint=str(values["checkpoint"]),
        graphs={Phase(name): str(sha256) for name, sha256 in values["graphs"].items()},
        inputs=str(values["inputs"]),
        version_compatible=_flag(values, "version_compatible"),
        hardware_compatible=_flag(values, "hardware_compatible"),
        stripped=_flag(values, "stripped"),
        plans=by_bucket,
        agreement=agreement_from_json(values["agreement"]),
        parity=None
        if parity is None
        else Parity(**{**parity, "agreement": agreement_from_json(parity.get("agreement"))}),
    )


def _flag(values: Mapping[str, Any], name: str) -> bool:
    if not isinstance(values[name], bool):
        raise ValueError(f"{name} is {values[name]!r}, not true or false")
    return bool(values[name])


def _ordered(plans: Iterable[Plan]) -> list[Plan]:
    order = list(Phase)
    return sorted(plans, key=lambda p: (order.index(p.bucket.phase), p.bucket.rows, p.bucket.length))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def _guessed_command(folder: Path) -> str:
    """The command for a folder whose manifest cannot be read: its name tells what it held."""
    bundle = folder.parent.parent if folder.parent.name == PLANS_FOLDER else folder
    kind = EngineKind.TENSORRT_RTX if folder.name.startswith("tensorrt-rtx-") else EngineKind.TENSORRT
    precision = " --precision fast" if folder.name.endswith("-fast") else ""
    return f"autogaze build CHECKPOINT {bundle} --engine {kind.value}{precision}"
