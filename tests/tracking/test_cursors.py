"""Guards the cursor: a damaged one has the server asked again."""

from __future__ import annotations

from pathlib import Path

from pipelines.tracking import cursors, records
from tests.tracking.projects import Project, pending


def test_a_damaged_cursor_has_the_server_asked_again(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    uri = "http://127.0.0.1:9"
    cursor = cursors.Cursor.of(project.spool.store, uri)
    everything = records.all_runs(project.spool)[0]
    marks = {r.identity: r.mark for r in everything}
    for damaged in (None, "another", {"run_id": "1"}, ["a"]):
        project.write(str(cursor.path), {"uri": uri, "sent": {**marks, everything[0].identity: damaged}})
        assert pending(project.spool, uri) == ["lenet5-mnist (laptop)"]
    for text in ("{", "[]", '{"sent": null}', '{"sent": [1]}', '{"runs": {}}'):
        project.write(str(cursor.path), text)
        assert len(pending(project.spool, uri)) == 2
