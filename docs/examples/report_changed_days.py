"""# Says which daily statistics have changed

An example of a DAG of one's own: it runs when `aggregate_daily_analytics` or `archive_old_analytics` has written rows of
`analytics_daily_stats` that are new or other than before, and sees which.
"""

from airflow.sdk import Asset, dag, task

DAILY_STATS = Asset("analytics_daily_stats")


@task(multiple_outputs=False)
def changed_days(triggering_asset_events=None):
    """Return the websites whose statistics have changed, by day. Several tasks may have told of changes since."""
    changed = {}
    for event in triggering_asset_events[DAILY_STATS]:
        for day, websites in event.extra["days"].items():
            changed.setdefault(day, set()).update(websites)
    return {day: sorted(websites) for day, websites in sorted(changed.items())}


@dag(schedule=DAILY_STATS, catchup=False, doc_md=__doc__)
def report_changed_days():
    changed_days()


report_changed_days()
