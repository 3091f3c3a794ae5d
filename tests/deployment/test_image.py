"""What the Dockerfile does, done without a container engine: its own steps, in namespaces of a process.

The RUN lines of both stages run in a layer over this machine's own files, which nobody else sees and which is thrown
away. What they made is served as the image's user with a read-only root, no capability and no new privileges.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from tests.integration.faults import linked
from whispr.embed import Backends

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "config" / "docker" / "Dockerfile"
PORTS = ("GATEWAY", "WEBSOCKET", "AUTH", "USER", "MEDIA", "NOTIFICATION", "MESSAGING", "CHAT", "STREAM")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Stage = list[tuple[str, str]]


def stages() -> list[Stage]:
    """The instructions of each stage, after the first ARG."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    found: list[Stage] = []
    for word, rest in lines:
        if word == "FROM":
            found.append([])
        elif found:
            found[-1].append((word, rest))
    return found


def variables(stage: Stage) -> dict[str, str]:
    return dict(pair.split("=", 1) for word, rest in stage if word == "ENV" for pair in shlex.split(rest))


def values(stage: Stage, wanted: str) -> list[str]:
    return [rest for word, rest in stage if word == wanted]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the context from the builder: all, but for what it takes back."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return not any(
        path == line[1:] or path.startswith(f"{line[1:]}/") for line in lines if line.startswith("!")
    )


def test_the_image_is_made_of_what_is_there() -> None:
    """Two stages; what is copied is in the repository and not ignored; the end is an ordinary user's."""
    builder, final = stages()
    for rest in values(builder, "COPY"):
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists()
            assert not ignored(source)
    assert values(final, "USER") == ["10001:10001"]
    assert values(final, "STOPSIGNAL") == ["SIGTERM"]
    assert "curl" not in DOCKERFILE.read_text()
    assert not re.search(r"://|-index[- ]url", DOCKERFILE.read_text()), (
        "where packages come from is the builder's"
    )
    assert ignored("tests")
    assert ignored(".git")


LAYERS = """
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
for each in proc sys dev; do mount --rbind /$each /mnt/root/$each; done
mount -t tmpfs -o mode=1777 none /mnt/root/tmp
mkdir /mnt/root{src}
cp -r {context}/. /mnt/root{src}/
"""
"""What is on this machine stands in for the images that the Dockerfile begins with."""
STEP = "chroot /mnt/root sh -euc {step}\n"
SERVE = """
mount --bind {data} /mnt/root{work}
mount -t tmpfs -o mode=1777 none /mnt/root/tmp
mount -o remount,ro /mnt/root
env -i {environ} chroot /mnt/root setpriv --reuid={uid} --regid={gid} --clear-groups --no-new-privs \\
    --bounding-set=-all sh -euc {script}
"""
LIFE = """
cd {work}
grep -q "^overlay / overlay ro," /proc/mounts || exit 9
{command} > {work}/out 2> {work}/err &
for _ in $(seq 240); do
    kill -0 $! || exit 8
    if {healthcheck} 2> /dev/null; then ready=yes; break; fi
    sleep 0.25
done
test "${{ready:-}}" = yes || exit 7
grep -E "^(Uid|CapEff|NoNewPrivs)" /proc/$!/status
kill -{signal} $!
wait $!
echo stopped with $?
find /tmp -mindepth 1 | sed "s/^/left: /"
"""


def laid_out(stage: Stage, context: Path) -> None:
    """Copy what the builder gets."""
    for rest in values(stage, "COPY"):
        *sources, target = rest.split()
        for source in sources:
            place = context / target / Path(source).name if target.endswith("/") else context / target
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)


def life(stage: Stage) -> str:
    """The image's command from its start to its end, with its own check of health and its own signal."""
    (check,) = values(stage, "HEALTHCHECK")
    return LIFE.format(
        work=values(stage, "WORKDIR")[0],
        command=shlex.join(listed(stage, "ENTRYPOINT") + listed(stage, "CMD")),
        healthcheck=shlex.join(json.loads(check.partition("CMD ")[2])),
        signal=values(stage, "STOPSIGNAL")[0].removeprefix("SIG"),
    )


def listed(stage: Stage, instruction: str) -> list[str]:
    words: list[str] = json.loads(values(stage, instruction)[-1])
    return words


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_its_steps_make_what_it_serves(backends: Backends, tmp_path: Path) -> None:
    """The steps succeed; what they make serves as nobody in particular, and writes in its data folder alone.

    The image's own check finds it healthy, and its own signal ends it with exit code 0. So with backends of its own,
    and then with those it is given by URL, as compose and Kubernetes do: it starts none.
    """
    async with trio.open_nursery() as nursery:
        urls = {}
        for name in ("postgres", "redis", "nats"):
            url = getattr(backends, f"{name}_url")
            assert url is not None
            link, through = linked(url, nursery)
            await link.join()
            urls[f"WHISPR_{name.upper()}_URL"] = through()
        await trio.to_thread.run_sync(live_twice, tmp_path, urls)
        nursery.cancel_scope.cancel(reason="it has been tried")


def live_twice(tmp_path: Path, urls: dict[str, str]) -> None:
    """Make the image, and serve from it with its own backends and with others."""
    if os.geteuid() != 0 or any(shutil.which(each) is None for each in ("unshare", "setpriv", "chroot")):
        pytest.skip("it takes root, unshare, setpriv and chroot to stand in for a container engine")
    builder, final = stages()
    data, elsewhere, context = (tmp_path / name for name in ("data", "elsewhere", "context"))
    laid_out(builder, context)
    (src,) = values(builder, "WORKDIR")
    uid, gid = values(final, "USER")[0].split(":")
    for place in (data, elsewhere):
        place.mkdir()
        shutil.chown(place, int(uid), int(gid))
    environ = {k: v.replace("$PATH", PATH) for k, v in variables(final).items()}
    environ |= {f"WHISPR_{name}_PORT": "0" for name in PORTS} | {"WHISPR_HOST": "127.0.0.1"}
    steps = [f"cd {src}\n{step}" for step in values(builder, "RUN")] + values(final, "RUN")
    script = LAYERS.format(src=src, context=context)
    script += "".join(STEP.format(step=shlex.quote(step)) for step in steps)
    for place, more in ((data, {}), (elsewhere, urls)):
        script += SERVE.format(
            data=place,
            work=values(final, "WORKDIR")[0],
            environ=shlex.join(f"{k}={v}" for k, v in (environ | more).items()),
            uid=uid,
            gid=gid,
            script=shlex.quote(life(final)),
        )
    system = {k: v for k, v in os.environ.items() if not k.startswith(("WHISPR_", "PYTHON"))}
    namespaces = [
        "unshare",
        "--mount",
        "--propagation=private",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    done = subprocess.run(
        [*namespaces, "sh", "-euc", script],
        env=system | variables(builder) | {"PATH": PATH}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = "".join(
        file.read_text()
        for place in (data, elsewhere)
        for file in (place / "out", place / "err")
        if file.exists()
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}{done.stderr}\n{said[-4000:]}"
    lived = [
        f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "stopped with 0",
    ]
    assert done.stdout.splitlines()[-8:] == lived * 2, done.stdout
    assert (data / "VERSION").exists()
    assert (data / "postgres").is_dir()
    assert not [name for name in ("postgres", "redis", "nats") if (elsewhere / name).exists()]
