"""When a search shall be done, as a person writes it. Knows calendars alone."""

from __future__ import annotations

import datetime

DAY = datetime.timedelta(days=1)


def deadline_of(until: str, now: datetime.datetime) -> datetime.datetime:
    """The moment that a person means: the next such hour, or a date and an hour.

    Without a zone it is what this machine's clock will show then: an hour to which it is put
    forward or back in the night, for summer time, counts.

    Args:
        until: ``08:00``, or ISO 8601 as ``2026-11-25T08:00``.
        now: As this machine's clock shows it, without a zone.

    Returns:
        With its zone.

    Raises:
        ValueError: If it is neither.
    """
    try:
        hour = datetime.time.fromisoformat(until)
    except ValueError:
        moment = _moment(until)
    else:
        here = now if hour.tzinfo is None else now.astimezone(hour.tzinfo)
        moment = datetime.datetime.combine(here.date(), hour)
        moment = moment if moment > here else moment + DAY
    return moment if moment.tzinfo else moment.astimezone()


def _moment(until: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(until)
    except ValueError:
        raise ValueError(
            f"`until` must be an hour as `08:00`, or a moment as `2026-11-25T08:00`, got {until!r}"
        ) from None
