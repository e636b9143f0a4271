"""Comparisons: of merge methods on one study (`methods`, `tables`, `folder`, `pick`), and of finished runs (`runs`)."""
