"""# Says which daily statistics have changed

An example of a DAG of one's own: it runs when `aggregate_daily_analytics` or `archive_old_analytics` has written rows of
`analytics_daily_stats` that are new or other than before, and sees which.
"""

from airflow.sdk import Asset, dag, task

DAILY_STATS = Asset("analytics_daily_stats")


@task(multiple_outputs=False)
def changed_days(triggering_asset_events=None):
    """Return the websites whose statistics have changed, by day; None where they were too many to be named."""
    changed = {}
    # Several runs of the jobs may have told of changes since.
    for event in triggering_asset_events[DAILY_STATS]:
        for day, websites in event.extra["days"].items():
            known = changed.setdefault(day, [])
            changed[day] = None if known is None or websites is None else sorted({*known, *websites})
    return changed


@dag(schedule=DAILY_STATS, catchup=False, doc_md=__doc__)
def report_changed_days():
    changed_days()


report_changed_days()
