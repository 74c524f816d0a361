"""The half on the platform: a proxy with a durable queue for each workspace, and the restart cycle."""
