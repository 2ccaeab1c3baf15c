"""Guards the cursor: a damaged one has the server asked again."""

from __future__ import annotations

from pathlib import Path

from pipelines.tracking import cursors, helper, records
from tests.tracking.projects import Project


def test_a_damaged_cursor_has_the_server_asked_again(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.benchmark("lenet5-mnist", "mnist", 1.0, 1)
    uri = "http://127.0.0.1:9"
    cursor = cursors.Cursor.of(project.spool.store, uri)
    everything = records.gather(project.spool)[0]
    entries = {r.identity: {"run_id": "1", "sent": r.marks} for r in everything}
    for damaged in (None, {"run_id": "1", "sent": {"curve": "ten"}}, {"run_id": 1, "sent": {}}, {"run_id": "1"}):
        project.write(str(cursor.path), {"uri": uri, "runs": {**entries, everything[0].identity: damaged}})
        assert [r.name for r in helper.pending(project.spool, uri)] == ["lenet5-mnist (laptop)"]
    for text in ("{", "[]", '{"runs": null}', '{"runs": [1]}'):
        project.write(str(cursor.path), text)
        assert len(helper.pending(project.spool, uri)) == 2
