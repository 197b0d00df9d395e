"""From a run's config to a job of a site's scheduler: sites as data, the scripts made of them, and `frontier submit`."""
