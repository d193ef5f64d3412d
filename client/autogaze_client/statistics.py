"""Where the server's time goes, from the counters that Triton keeps for each model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ModelStatistics", "ServerStatistics"]


@dataclass(frozen=True)
class ModelStatistics:
    """Counters of one model since the server started.

    Attributes:
        model: its name in the repository.
        requests: requests that succeeded.
        total_ns: nanoseconds that these requests spent in the model, waiting included.
        queue_ns: of those, nanoseconds spent waiting for an instance or a batch.
        compute_ns: of those, nanoseconds in the model's own code, its inputs and outputs not counted.
    """

    model: str
    requests: int
    total_ns: int
    queue_ns: int
    compute_ns: int = 0


@dataclass(frozen=True)
class ServerStatistics:
    """Counters of every model at one moment; the difference of two moments tells what happened between."""

    models: tuple[ModelStatistics, ...]

    def since(self, earlier: ServerStatistics) -> ServerStatistics:
        """What was counted after ``earlier``; models that served nothing are left out."""
        before = {model.model: model for model in earlier.models}
        zero = ModelStatistics("", 0, 0, 0)
        changes = []
        for model in self.models:
            base = before.get(model.model, zero)
            # A reloaded model counts from zero again.
            base = base if model.requests >= base.requests else zero
            if model.requests > base.requests:
                changes.append(
                    ModelStatistics(
                        model=model.model,
                        requests=model.requests - base.requests,
                        total_ns=model.total_ns - base.total_ns,
                        queue_ns=model.queue_ns - base.queue_ns,
                        compute_ns=model.compute_ns - base.compute_ns,
                    )
                )
        return ServerStatistics(tuple(changes))

    def request_ms(self) -> dict[str, float]:
        """Mean milliseconds that a request spent in each model, waiting included."""
        return {stats.model: stats.total_ns / stats.requests / 1e6 for stats in self.models if stats.requests}

    def stage_ms(self, ensemble: str = "autogaze", late: str = "autogaze_generate") -> dict[str, float]:
        """``request_ms``, with the true time of the step that answers after its execution has returned.

        Triton stops that step's clock when its execution returns, while its rows are still under way. The models
        that a clip passes follow each other, so what the others leave of the ensemble's time is the late one's.

        Args:
            ensemble: the model whose steps the others are.
            late: the step.
        """
        times = self.request_ms()
        if ensemble not in times or late not in times:
            return times
        others = sum(ms for model, ms in times.items() if model.startswith(f"{ensemble}_") and model != late)
        others -= times.get(f"{ensemble}_stream", 0.0)
        return {**times, late: max(times[late], times[ensemble] - others)}
