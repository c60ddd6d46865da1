"""The throughput of the variants of a table at full size, from measurements that are interleaved in one session."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from frepro.training.runs import Throughput

# Added to the setting of a model that was timed after the others of its table, instead of interleaved with them.
LATER = ", in another session"


@dataclass(frozen=True)
class Timings:
    """The timings of a table on one device.

    Args:
        by_label: Label of each timed variant -> its throughput.
        device: Name of the device.
    """

    by_label: Mapping[str, Throughput]
    device: str

    def records(self) -> dict[str, dict[str, Any] | None]:
        """Return label -> record of each timed variant; ``None`` for one that must still be timed."""
        return {label: timing.measurement.record() for label, timing in self.by_label.items()}

    def rates(self) -> dict[str, list[float]]:
        """Return label -> images per second, round by round, of each variant with a record."""
        return {label: record["values"]["images_per_second"] for label, record in self.records().items() if record}

    def missing(self, pairs: Iterable[tuple[str, str]]) -> list[Throughput]:
        """Return what must still be timed.

        These are variants without a record, and pairs that were not interleaved in the same session: the difference of
        such a pair would include a difference between two states of the machine.

        Args:
            pairs: Labels of two variants whose throughput is compared.
        """
        records = self.records()
        missing = {label for label, record in records.items() if record is None}
        for pair in pairs:
            if set(pair) <= set(records):
                sessions = {record and record["values"]["session"] for record in map(records.get, pair)}
                missing |= set(pair) if len(sessions) > 1 else set()
        return [timing for label, timing in self.by_label.items() if label in missing]

    def settings(self) -> dict[str, str]:
        """Return label -> the device, with a remark if most other variants were timed in another session."""
        records = {label: record for label, record in self.records().items() if record}
        sessions = [record["values"]["session"] for record in records.values()]
        main = max(sessions, key=sessions.count, default=None)
        return {
            label: self.device + ("" if record["values"]["session"] == main else LATER)
            for label, record in records.items()
        }
