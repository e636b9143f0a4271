"""Pictures of fronts, comparisons and trees of merges, for trackers and pages that show no script."""
