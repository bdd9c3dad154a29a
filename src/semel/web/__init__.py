"""The web views of a worker: its tables, pipelines and dedup marks over HTTP (`semel.web.server.WebServer`)."""
