"""How a run is reached: the REST API, the dashboard and the API docs, all through the gateway."""
