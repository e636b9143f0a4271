"""The pages that a run and a comparison leave: one HTML file each, which opens from disk with no network.

`page.fill_page` puts data, style sheets, scripts and a body of this folder into ``page.html``; ``report_*`` are of a
run's report, ``compare_*`` of a comparison's, ``page_*`` of both.
"""
