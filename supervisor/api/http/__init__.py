"""The HTTP API: JSON to values and back.

`app` puts the blueprints together; each of `runs`, `vms`, `events`, `templates` and `ops` is one
blueprint. `json_body` makes requests of JSON, `views` makes JSON of VMs, `problems` has the one
table from an error to a status.
"""
