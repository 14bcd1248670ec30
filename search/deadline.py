"""When a search shall be done, as a person writes it. Knows calendars alone."""

from __future__ import annotations

import datetime


def deadline_of(until: str, now: datetime.datetime) -> datetime.datetime:
    """The moment that a person means: the next such hour, or a date and an hour.

    Args:
        until: ``08:00``, or ISO 8601 as ``2026-11-25T08:00``; without a zone, that of ``now``.
        now: With its zone.

    Raises:
        ValueError: If it is neither.
    """
    try:
        hour = datetime.time.fromisoformat(until)
    except ValueError:
        return _moment(until, now)
    moment = datetime.datetime.combine(now.date(), hour, tzinfo=hour.tzinfo or now.tzinfo)
    return moment if moment > now else moment + datetime.timedelta(days=1)


def _moment(until: str, now: datetime.datetime) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(until)
    except ValueError:
        raise ValueError(
            f"`until` must be an hour as `08:00`, or a moment as `2026-11-25T08:00`, got {until!r}"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)
