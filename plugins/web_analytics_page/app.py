"""The routes of the Analytics page: the page, its files, its parts as HTML, and its tables as CSV.

Every route needs a login that may see the runs of the jobs; none changes anything.
"""

import csv
import hashlib
import importlib.util
import io
import logging
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag, requires_access_view
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse

from web_analytics_page import parts
from web_analytics_page.database import Reader, Unreachable
from web_analytics_page.formats import ENVIRONMENT
from web_analytics_page.view import JOBS, View, view

HERE = Path(__file__).resolve().parent
FILES = {name: HERE / name for name in ("page.css", "page.js")}
if (package := importlib.util.find_spec("chartkick")) and package.origin:  # its wheel has Chart.js in it
    FILES["chart.js"] = Path(package.origin).parent / "django" / "static" / "chartkick" / "Chart.bundle.js"
else:
    logging.getLogger(__name__).warning(
        "The Analytics page shows no charts: install the Python package chartkick where the api-server runs."
    )
# Another one whenever a file is, so that browsers may keep each for ever.
VERSION = hashlib.sha256(repr([(path.stat().st_mtime, path) for path in FILES.values()]).encode()).hexdigest()[:12]

HEADERS = {
    "Cache-Control": "no-store",
    # Paths and referrers are what visitors sent: should one ever get into the page as markup, it stays inert.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'",
}

app = FastAPI(
    title="Analytics",
    # What shows the entry in the navigation, and what the page is about.
    dependencies=[
        Depends(requires_access_view(AccessView.PLUGINS)),
        *(Depends(requires_access_dag("GET", DagAccessEntity.RUN, job)) for job in JOBS),
    ],
    # They would be open to everybody.
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)
Shown = Annotated[View, Depends(view)]


@app.exception_handler(Unreachable)
def unreachable(_: Request, error: Unreachable) -> Response:
    """Nothing can be shown, for the reason that the error says."""
    return PlainTextResponse(str(error), 503, HEADERS)


@app.exception_handler(RequestValidationError)
def unknown_address(_: Request, __: RequestValidationError) -> Response:
    """The address was not made by the page."""
    return PlainTextResponse("The address of this page has a value that it does not know.", 422, HEADERS)


@app.get("/")
def page() -> HTMLResponse:
    """The page, without its parts."""
    return _render("page", version=VERSION)


@app.get("/static/{name}")
def static(name: str) -> FileResponse:
    """A file of the page."""
    if name not in FILES:
        raise HTTPException(404, f"There is no file {name}.")
    return FileResponse(FILES[name], headers={"Cache-Control": "private, max-age=31536000, immutable"})


@app.get("/part/range")
def range_form(shown: Shown) -> HTMLResponse:
    """The form that chooses the range: it needs no database."""
    return _render("range", view=shown)


@app.get("/part/{name}")
def part(
    name: Literal["status", "traffic", "items", "retention", "storage"], shown: Shown, live: bool = False
) -> HTMLResponse:
    """A part of the page; `live` with the days that are not aggregated yet, which are counted for it."""
    with Reader(**shown.parameters(), live=live) as reader:
        content = getattr(parts, name)(reader, shown)
    return _render(name, view=shown, live=live, **content)


@app.get("/csv/{name}")
def table(name: Literal["days", "websites", "items"], shown: Shown) -> Response:
    """A table of the page as a file for spreadsheets, with the days that are not aggregated yet."""
    with Reader(**shown.parameters(), live=True) as reader:
        columns, rows, problem = getattr(parts, f"{name}_table")(reader, shown)
    if problem:
        return PlainTextResponse(problem, 503, HEADERS)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([columns, *([_cell(row[column]) for column in columns] for row in rows)])
    what = [name if name != "items" else shown.tab, *([shown.website] if shown.website else [])]
    first, last = shown.item_days if name == "items" else (shown.first, shown.last)
    file = re.sub(r"[^\w.-]+", "_", "_".join([*what, str(first), str(last)]), flags=re.ASCII)[:150]
    return Response(
        text.getvalue().encode("utf-8-sig"),  # without the mark, spreadsheets guess another encoding
        headers=HEADERS | {"Content-Disposition": f'attachment; filename="{file}.csv"'},
        media_type="text/csv; charset=utf-8",
    )


def _cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula: visitors send paths and names of their choice."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _render(template: str, **content: Any) -> HTMLResponse:
    return HTMLResponse(ENVIRONMENT.get_template(f"{template}.html").render(content), headers=HEADERS)
