"""What the three web-analytics DAGs share."""
