"""What a random history is made of."""

from datetime import UTC, datetime
from typing import NamedTuple

from hypothesis import strategies as st

from history_model import SITES

WEBSITES = st.sampled_from(SITES)
ZONE_NAMES = [
    "UTC",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour of daylight saving time
    "Asia/Kolkata",
    "Pacific/Kiritimati",
    "Pacific/Pago_Pago",  # 25 hours behind Kiritimati
]
ZONES = st.sampled_from(ZONE_NAMES)
# In the days before each, the clocks of New York or of Lord Howe change.
STARTS = [datetime(2024, month, day, 6, tzinfo=UTC) for month, day in ((3, 14), (4, 12), (10, 10), (11, 7))]


class Moment(NamedTuple):
    """A moment of a day before the present one, in UTC."""

    days_ago: int
    hour: float
    just_before: bool


class Content(NamedTuple):
    """What an event is about."""

    event_type: str
    pathname: str
    referrer_source: str | None = None
    event_name: str | None = None
    country: str | None = None
    device_type: str = "unknown"
    browser: str | None = None
    os: str | None = None
    utm_source: str | None = None
    utm_medium: str | None = None
    utm_campaign: str | None = None


class Draft(NamedTuple):
    """An event that the application stores."""

    website: str
    moment: Moment
    content: Content
    visit: tuple[str, str]
    is_deleted: bool = False
    created_at: datetime | None = None
    prefix: str = "a"


class SessionDraft(NamedTuple):
    """A session that the application stores."""

    name: str
    website: str
    moment: Moment
    minutes: int
    is_deleted: bool


# Hours of UTC at which days begin in these zones.
MOMENTS = st.builds(
    Moment, st.integers(0, 11), st.sampled_from([0, 4, 5, 10, 11, 13, 13.5, 18.5]), st.sampled_from([False, True])
)
DELETED = st.sampled_from([False, False, True])
NAMES = ["heartbeat", "sale", "(other)"]
CONTENTS = st.sampled_from(
    [
        Content("pageview", "/"),
        Content("pageview", "/ä", "direct", country="DE", browser="Firefox", utm_source="news"),
        Content("pageview", "/Z", "google", country="FR", device_type="mobile", os="Android", utm_medium="cpc"),
        Content("pageview", "/a", "", country="", device_type="mobile", browser="Firefox", utm_campaign="spring"),
        Content("custom_event", "/a", "google", "sale", "DE"),
        Content("custom_event", "/a", None, "heartbeat"),
    ]
)
VISITS = st.sampled_from([(f"visitor_{number % 3}", f"session_{number}") for number in range(5)])
DRAFTS = st.builds(
    Draft,
    website=WEBSITES,
    moment=MOMENTS,
    content=CONTENTS,
    visit=VISITS,
    is_deleted=DELETED,
    created_at=st.sampled_from([None, datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)]),
    prefix=st.sampled_from("aZ_"),
)
SESSIONS = st.builds(
    SessionDraft,
    name=st.sampled_from([f"session_{number}" for number in range(6)]),
    website=WEBSITES,
    moment=MOMENTS,
    minutes=st.sampled_from([-1, 0, 45, 3000]),
    is_deleted=DELETED,
)
