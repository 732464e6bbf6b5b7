"""`m3 report`: tables, charts and the HTML page of a run."""
