"""Job scripts and run configurations, shipped as package data (`frontier_jobs`)."""
