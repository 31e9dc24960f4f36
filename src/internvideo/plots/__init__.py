"""Pictures and pages: charts, filmstrips, timelines, reports."""
