"""What a controller counts."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """What has happened so far; goes on while fallen back.

    Attributes:
        events: taken in, of any kind.
        broken_events: of these, such as nothing could be made of.
        decisions: that were put in force, or would have been but for observing.
        search_ms: what all searches took together, late ones included.
        late_decisions: dropped, as they took longer than SteeringRules.deadline_ms.
        failed_searches: that raised, or gave knobs the engine was not started for.
        clock_failures: clocks that could not be set, confirmed or released.
        falls: how often the engine was given its own settings back.
        backward_times: events older than one before them.
        wrong_times: events of another day, or of no time at all; taken to be of now.
        lost_requests: forgotten, as their end was not reported.
        lost_steps: taken as back, as others that need their tokens were issued.
        unknown_classes: requests of an SLO class that nobody defined.
    """

    events: int = 0
    broken_events: int = 0
    decisions: int = 0
    search_ms: float = 0.0
    late_decisions: int = 0
    failed_searches: int = 0
    clock_failures: int = 0
    falls: int = 0
    backward_times: int = 0
    wrong_times: int = 0
    lost_requests: int = 0
    lost_steps: int = 0
    unknown_classes: int = 0
