"""Data exports: everything held about a person in one archive, or nothing and the names of who did not answer."""

from __future__ import annotations

import io
import json
import secrets
import zipfile
from typing import Any

import pytest
import trio

from tests.services.auth.test_administration import admin, delete, told
from tests.services.auth.test_service import bearer, outcomes, refusal
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError, exhausted, unavailable
from whispr.services.auth import archive, exports
from whispr.services.auth.keys import mint_service_token
from whispr.v1 import auth_pb2, common_pb2


def record(kind: str, data: Any, source: str = "user") -> common_pb2.DataRecord:
    return common_pb2.DataRecord(source=source, kind=kind, json=json.dumps(data, indent=1).encode())


async def request(auth: Any, token: str, user_id: str = "") -> Any:
    message = auth_pb2.RequestDataExportRequest(user_id=user_id)
    return (await auth.stub.RequestDataExport(message, metadata=bearer(token))).export


async def get(auth: Any, token: str, export_id: str) -> Any:
    message = auth_pb2.GetDataExportRequest(export_id=export_id)
    return (await auth.stub.GetDataExport(message, metadata=bearer(token))).export


async def part(auth: Any, token: str, export_id: str, number: int = 0) -> bytes:
    message = auth_pb2.GetDataExportPartRequest(export_id=export_id, part=number)
    return bytes((await auth.stub.GetDataExportPart(message, metadata=bearer(token))).content)


async def finished(auth: Any, token: str, export_id: str) -> Any:
    with trio.fail_after(10):
        while (export := await get(auth, token, export_id)).state in ("queued", "running"):
            await trio.lowlevel.checkpoint()
    return export


async def fetched(auth: Any, token: str, export: Any) -> zipfile.ZipFile:
    parts = [await part(auth, token, export.id, number) for number in range(export.part_count)]
    content = b"".join(parts)
    assert len(content) == export.size_bytes
    return zipfile.ZipFile(io.BytesIO(content))


async def test_everything_held_is_in_one_archive(auth: Any, db: Postgres) -> None:
    """One file of JSON lines for each service, and one that says whose they are; the event follows."""
    ada = await auth.register("ada")
    auth.others.held = {
        "user": [record("profile", {"bio": "one\ntwo"}), record("block", {"blocked_id": "x"})],
        "messaging": [record("message", {"text": str(n)}, "messaging") for n in range(3000)],
    }
    export = await finished(auth, ada.access_token, (await request(auth, ada.access_token)).id)
    assert (export.state, export.user_id, list(export.failed_services)) == ("done", ada.user.id, [])
    assert export.expires_at.seconds - export.finished_at.seconds == exports.KEPT_S
    with await fetched(auth, ada.access_token, export) as found:
        assert sorted(found.namelist()) == ["about.json", "messaging.jsonl", "user.jsonl"]
        user = [json.loads(line) for line in found.read("user.jsonl").splitlines()]
        assert user == [
            {"kind": "profile", "data": {"bio": "one\ntwo"}},
            {"kind": "block", "data": {"blocked_id": "x"}},
        ]
        assert len(found.read("messaging.jsonl").splitlines()) == 3000
        about = json.loads(found.read("about.json"))
        assert (about["username"], about["records"]) == ("ada", {"user": 2, "messaging": 3000})
    assert (await refusal(part(auth, ada.access_token, export.id, export.part_count))).code is Code.NOT_FOUND
    assert [each["state"] for each in await told(db, "data_export_finished")] == ["done"]


async def test_large_archives_come_in_parts(auth: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parts it takes, put together they are the archive."""
    monkeypatch.setattr(exports, "PART_BYTES", 1000)
    monkeypatch.setattr(archive, "BATCH_BYTES", 100)
    ada = await auth.register("ada")
    auth.others.held = {"user": [record("x", {"n": hash(str(n))}) for n in range(500)], "messaging": []}
    export = await finished(auth, ada.access_token, (await request(auth, ada.access_token)).id)
    assert export.part_count > 3
    with await fetched(auth, ada.access_token, export) as found:
        assert found.testzip() is None
        assert len(found.read("user.jsonl").splitlines()) == 500


async def test_services_that_do_not_answer_are_named(auth: Any, db: Postgres) -> None:
    """The export fails, naming all of them, and nothing of it is given out; the next request starts anew."""
    ada = await auth.register("ada")
    auth.others.held = {"user": unavailable("connection refused"), "messaging": unavailable("also away")}
    export = await finished(auth, ada.access_token, (await request(auth, ada.access_token)).id)
    assert (export.state, sorted(export.failed_services)) == ("failed", ["messaging", "user"])
    assert "user: connection refused" in export.error
    error = await refusal(part(auth, ada.access_token, export.id))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "not_ready")
    auth.others.held = {"user": [], "messaging": []}
    again = await request(auth, ada.access_token)
    assert again.id != export.id
    assert (await finished(auth, ada.access_token, again.id)).state == "done"
    assert [each["state"] for each in await told(db, "data_export_finished")] == ["failed", "done"]


@pytest.mark.parametrize("bad", [b"", b"not json", b'{"a": 1', b"\xff"])
async def test_a_record_that_is_not_json_fails_the_export(auth: Any, bad: bytes) -> None:
    """An archive that cannot be read is none."""
    ada = await auth.register("ada")
    auth.others.held = {"user": [common_pb2.DataRecord(kind="x", json=bad)], "messaging": []}
    export = await finished(auth, ada.access_token, (await request(auth, ada.access_token)).id)
    assert (export.state, list(export.failed_services)) == ("failed", ["user"])


async def test_an_archive_has_a_largest_size(auth: Any) -> None:
    """Beyond it collecting stops, and says so."""
    auth.others.held = {
        "user": [record("x", {"n": secrets.token_hex(20_000)}) for _ in range(50)],
        "messaging": [],
    }
    with pytest.raises(WhisprError) as refused:
        async with archive.collected(auth.others.neighbours(), "u", "ada", bytes_max=100_000):
            pass
    assert refused.value.reason == exhausted("", reason=archive.TOO_LARGE).reason


async def test_exports_are_ones_own(auth: Any, db: Postgres) -> None:
    """A stranger finds nothing; an administrator may ask for anybody; a service alone for nobody."""
    root = (await admin(auth, db)).access_token
    ada, eva = await auth.register("ada"), await auth.register("eva")
    auth.others.held = {"user": [], "messaging": []}
    export = await request(auth, ada.access_token)
    for call in (get(auth, eva.access_token, export.id), part(auth, eva.access_token, export.id)):
        assert (await refusal(call)).code is Code.NOT_FOUND
    assert (await refusal(request(auth, eva.access_token, ada.user.id))).reason == "forbidden"
    assert (await refusal(request(auth, mint_service_token(auth.keys.signer, "x")))).reason == "forbidden"
    assert (await finished(auth, root, export.id)).user_id == ada.user.id
    of_eva = await request(auth, root, eva.user.id)
    assert (await finished(auth, eva.access_token, of_eva.id)).state == "done"
    nobody = "0190163d-8694-739b-aea5-966c26f8ad91"
    assert (await refusal(request(auth, root, nobody))).code is Code.NOT_FOUND


async def test_one_export_at_a_time_and_some_a_day(auth: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests at the same moment share one; past the number of a day the next has to wait."""
    ada = await auth.register("ada")
    auth.others.held = {"user": [], "messaging": []}
    monkeypatch.setattr(auth.service.exports, "_asked", trio.Event())  # nobody hears of the requests
    results = await outcomes(lambda: request(auth, ada.access_token), 3)
    assert len({each.id for each in results}) == 1
    while await auth.service.exports._work():
        pass
    codes = []
    for _ in range(3):
        try:
            export = await request(auth, ada.access_token)
        except WhisprError as error:
            codes.append(error.reason)
            continue
        await auth.service.exports._work()
        await finished(auth, ada.access_token, export.id)
    assert codes[-1] == "rate_limited"


async def test_the_work_of_a_dead_process_is_done_again(auth: Any, db: Postgres) -> None:
    """An export is taken over when its worker is no longer believed, and given up after some attempts."""
    ada = await auth.register("ada")
    auth.others.held = {"user": [], "messaging": []}
    await db.execute(
        "INSERT INTO auth.exports (id, account_id, requested_by, state, believed_until, attempts)"
        " VALUES (gen_random_uuid(), $1, 'x', 'running', now() + interval '1 hour', 1)",
        ada.user.id,
    )
    assert not await auth.service.exports._work()
    await db.execute("UPDATE auth.exports SET believed_until = now() - interval '1 s'")
    assert await auth.service.exports._work()
    assert await db.fetchval("SELECT state FROM auth.exports") == "done"
    await db.execute(
        "UPDATE auth.exports SET state = 'running', attempts = 3, believed_until = now() - interval '1 s'"
    )
    assert await auth.service.exports._work()
    assert await db.fetchval("SELECT error FROM auth.exports") == "it was interrupted again and again"


async def test_archives_expire_and_go_with_the_account(auth: Any, db: Postgres) -> None:
    """After a week nobody has them; after a deletion at once."""
    ada = await auth.register("ada")
    auth.others.held = {"user": [record("x", 1)], "messaging": []}
    first = await finished(auth, ada.access_token, (await request(auth, ada.access_token)).id)
    await db.execute("UPDATE auth.exports SET expires_at = now() - interval '1 s'")
    assert (await refusal(get(auth, ada.access_token, first.id))).code is Code.NOT_FOUND
    await auth.service.exports.prune()
    assert await db.fetchval("SELECT count(*) FROM auth.export_parts") == 0
    await finished(auth, ada.access_token, (await request(auth, ada.access_token)).id)
    assert await db.fetchval("SELECT count(*) FROM auth.export_parts") == 1
    await delete(auth, ada.access_token, "correct horse")
    with trio.fail_after(5):
        while await db.fetchval("SELECT count(*) FROM auth.export_parts"):
            await trio.lowlevel.checkpoint()


async def test_what_auth_holds_is_exported(auth: Any) -> None:
    """The account and its sessions, without a secret; for services alone."""
    ada = await auth.register("ada", email="ada@example.org")
    await auth.login("ada")
    message = common_pb2.ExportUserDataRequest(user_id=ada.user.id)
    found: list[tuple[str, Any]] = []
    service = mint_service_token(auth.keys.signer, "auth")
    async with auth.stub.ExportUserData(message, metadata=bearer(service)) as call:
        async for each in call:
            assert each.source == "auth"
            found.append((each.kind, json.loads(each.json)))
    assert [kind for kind, _ in found] == ["account", "session", "session"]
    assert (found[0][1]["username"], found[0][1]["email"]) == ("ada", "ada@example.org")
    assert "password" not in json.dumps(found)
    with pytest.raises(WhisprError) as refused:
        async with auth.stub.ExportUserData(message, metadata=bearer(ada.access_token)) as call:
            async for _ in call:
                pass
    assert refused.value.reason == "service_only"
