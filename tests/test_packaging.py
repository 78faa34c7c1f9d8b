"""What is shipped and what it is built from: pins, wheel, image, compose file, Makefile."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pathspec import GitIgnoreSpec

import tracker
from tracker.settings import Settings

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = ("help", "serve", "test", "torture", "failovers", "lint", "format", "bench")
INHERITED_BY_MAKE = ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON")

IGNORED = GitIgnoreSpec.from_lines([".git", *(ROOT / ".gitignore").read_text().splitlines()])

needs_make = pytest.mark.skipif(
    shutil.which("make") is None and not os.environ.get("CI"), reason="needs make, which starts everything else"
)


def files(top: Path) -> Iterator[Path]:
    """Every file under `top` that git does not ignore."""
    for path in sorted(top.iterdir()):
        if IGNORED.match_file(f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}"):
            continue
        if path.is_dir():
            yield from files(path)
        else:
            yield path


# Pins


def pins() -> dict[str, str]:
    """The versions of constraints.txt by canonical name; a line that is no pin is an error."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;,]+)", line)
            assert match, f"not a pin: {line!r}"
            name = canonicalize_name(match[1])
            assert name not in found, f"{name} is pinned twice"
            found[name] = match[2]
    return found


def direct() -> list[Requirement]:
    groups = (*PROJECT["dependency-groups"].values(), PROJECT["project"]["dependencies"])
    return [Requirement(text) for group in (*groups, PROJECT["build-system"]["requires"]) for text in group]


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0", "3.14.0"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_every_dependency_is_pinned_to_a_version_that_is_allowed(python: str, platform: str) -> None:
    """Direct or not, on each Python and platform: so what was tested is what gets installed."""
    base = {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "sys_platform": platform,
        "platform_system": platform.capitalize(),
    }
    versions = pins()
    seen: set[tuple[str, str]] = set()
    todo = direct()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{requirement} is not pinned"
        assert requirement.specifier.contains(versions[name]), f"{requirement} does not allow {versions[name]}"
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needed = metadata.requires(name) or []
            except metadata.PackageNotFoundError:  # needed on another Python only
                continue
            for text in needed:
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({**base, "extra": extra}):
                    todo.append(further)
    assert len(seen) > len(direct())


def test_pip_and_the_build_backend_are_pinned_too() -> None:
    """The Makefile upgrades to just this pip, which knows dependency groups."""
    versions = pins()
    assert tuple(map(int, versions["pip"].split("."))) >= (25, 1)
    assert {"hatchling", "editables"} <= versions.keys()


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the machine's business, not the project's."""
    pattern = re.compile(
        r"index[-_]url|find[-_]links ?[=:]|https?://[^\s\"']+/simple\b|registry ?= ?[\"']?http"
        r"|py[p]i\.(org|python)|python[h]osted|npm[j]s\.(org|com)|registry\.[y]arnpkg",
        re.IGNORECASE,
    )
    looked_at = 0
    for path in files(ROOT):
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        looked_at += 1
        assert not (match := pattern.search(text)), f"{path.relative_to(ROOT)}: {match[0]}"
    assert looked_at > 20
    assert pattern.search("--index" + "-url https://example.org")


# Wheel and sdist


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist, built without a network."""
    directory = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return directory


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    """Lua scripts, py.typed and static files too: a script that is left out fails at the first request."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {path.relative_to(ROOT).as_posix() for path in files(ROOT / "tracker")}
    assert packed == source
    assert "tracker/py.typed" in packed
    assert any(re.fullmatch(r"tracker/store/lua/\w+\.lua", name) for name in packed)


def test_the_wheel_says_what_it_is(built: Path) -> None:
    """Name, version, license file, oldest Python, and the command it installs."""
    (wheel,) = built.glob("*.whl")
    prefix = f"tracker-{tracker.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        facts = archive.read(f"{prefix}/METADATA").decode().splitlines()
        commands = archive.read(f"{prefix}/entry_points.txt").decode()
        assert archive.read(f"{prefix}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert {f"Version: {tracker.__version__}", "License-Expression: MIT", "Requires-Python: >=3.11"} <= {*facts}
    assert "tracker = tracker.cli.main:main" in commands


def test_the_sdist_can_be_tested(built: Path) -> None:
    """It holds what the tests read: themselves, the Makefile, the pins and the deployment files."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.relative_to(ROOT).as_posix() for path in files(ROOT)} <= packed


def test_the_changelog_knows_the_version() -> None:
    """It has an entry for the version at hand, or says what is unreleased."""
    headings = re.findall(r"(?m)^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text())
    assert {tracker.__version__, "Unreleased"} & {*headings}


# Image and compose file


SINGLE, CLUSTER = "docker-compose.yml", "docker-compose.cluster.yml"


def compose(file: str = SINGLE) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return content


def test_redis_keeps_its_data() -> None:
    """It survives a restart of the machine and never evicts a session."""
    redis = compose()["services"]["redis"]
    options = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    (volume,) = redis["volumes"]
    assert volume == "redis-data:/data"
    assert "redis-data" in compose()["volumes"]


def test_only_the_proxy_is_published_and_on_loopback_only() -> None:
    """Redis has no password, so it shares a network with nothing but the pods."""
    services = compose()["services"]
    assert {name: service.get("ports") for name, service in services.items()} == {
        "redis": None,
        "api": None,
        "proxy": ["127.0.0.1:3013:3013"],
    }
    assert [name for name, service in services.items() if "store" in service["networks"]] == ["redis", "api"]


def test_two_pods_start_once_redis_is_healthy_and_the_proxy_once_they_are() -> None:
    """Every service has a healthcheck, comes back by itself and gets time to stop."""
    services = compose()["services"]
    assert services["api"]["deploy"]["replicas"] == 2
    assert services["api"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert services["proxy"]["depends_on"] == {"api": {"condition": "service_healthy"}}
    for service in services.values():
        assert service["restart"] == "unless-stopped"
        assert service["stop_grace_period"]
        assert service["healthcheck"]
    assert "test" not in services["api"]["healthcheck"]  # the image's own
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


NODES = [f"redis-{number}" for number in range(1, 7)]


def test_each_node_of_the_cluster_keeps_its_data_and_works_on_while_another_is_lost() -> None:
    content = compose(CLUSTER)
    for name in NODES:
        node = content["services"][name]
        options = dict(zip(node["command"][1::2], node["command"][2::2], strict=True))
        assert options["--cluster-enabled"] == "yes"
        assert options["--cluster-require-full-coverage"] == "no"
        assert options["--appendonly"] == "yes"
        assert options["--maxmemory-policy"] == "noeviction"
        assert node["volumes"] == [f"{name}:/data"]
        assert name in content["volumes"]
        assert node["restart"] == "unless-stopped"
        assert node["healthcheck"]


def test_the_pods_start_once_the_nodes_are_a_cluster() -> None:
    services = compose(CLUSTER)["services"]
    making = services["cluster"]
    assert making["depends_on"] == {name: {"condition": "service_healthy"} for name in NODES}
    assert "--cluster-replicas 1" in making["command"][-1]
    assert services["api"]["deploy"]["replicas"] == 2
    assert services["api"]["depends_on"] == {"cluster": {"condition": "service_completed_successfully"}}


def test_pods_and_proxy_are_the_same_on_a_cluster_but_for_where_the_store_is() -> None:
    one, many = compose()["services"], compose(CLUSTER)["services"]
    assert many["proxy"] == one["proxy"]
    environment = many["api"]["environment"]
    assert environment.pop("TRACKER_SHARDS") == "64"
    assert environment.pop("TRACKER_STORE_URL") == "redis+cluster://" + ",".join(NODES)
    one["api"]["environment"].pop("TRACKER_STORE_URL")
    one["api"].pop("depends_on")
    many["api"].pop("depends_on")
    assert many["api"] == one["api"]


def test_of_the_cluster_too_only_the_proxy_is_published_and_nothing_but_the_pods_reaches_the_nodes() -> None:
    content = compose(CLUSTER)
    services = content["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert {name for name, service in services.items() if "store" in service["networks"]} == {*NODES, "cluster", "api"}
    assert content["networks"] == compose()["networks"]


def test_the_url_of_the_cluster_is_one_that_the_tracker_takes() -> None:
    environment = compose(CLUSTER)["services"]["api"]["environment"]
    assert Settings(store_url=environment["TRACKER_STORE_URL"], shards=int(environment["TRACKER_SHARDS"])).on_cluster


@pytest.mark.parametrize("file", [SINGLE, CLUSTER])
def test_the_api_key_is_required_and_comes_from_the_environment(file: str) -> None:
    """Without it compose refuses to start and says how to make one; $$ is compose's way to write $."""
    key = compose(file)["services"]["api"]["environment"]["TRACKER_API_KEYS"]
    match = re.fullmatch(r"\$\{TRACKER_API_KEYS:\?(.+)\}", key)
    assert match
    assert "$$(openssl rand -hex 32)" in match[1]
    assert not re.search(r"(?<!\$)\$(?!\$)", match[1].replace("$$", ""))


@pytest.mark.parametrize("file", [SINGLE, CLUSTER])
def test_a_pod_drains_for_longer_than_the_proxy_takes_to_notice_and_then_has_ten_seconds(file: str) -> None:
    """Of the drain half is left for machines under load."""
    api = compose(file)["services"]["api"]
    drain = float(api["environment"]["TRACKER_DRAIN_SECONDS"])
    proxy = (ROOT / "deploy" / "haproxy.cfg").read_text()
    checks = re.search(r"check inter (\d+)s fastinter (\d+)ms fall (\d+) ", proxy)
    assert checks
    assert drain >= 2 * (int(checks[1]) + (int(checks[3]) - 1) * int(checks[2]) / 1000)
    assert int(api["stop_grace_period"].removesuffix("s")) >= drain + 10


@pytest.mark.parametrize("file", [SINGLE, CLUSTER])
def test_the_settings_in_the_compose_file_exist(file: str) -> None:
    """Each variable is one that the tracker reads."""
    environment = compose(file)["services"]["api"]["environment"]
    assert Settings.unknown_variables(environment) == []


def test_the_image_runs_the_tracker_as_nobody_in_particular() -> None:
    """Not as root, stopped by SIGTERM, on the documented port, open to the network and therefore only with a key."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    final = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert re.search(r"(?m)^USER [1-9]\d*", final)
    assert "\nEXPOSE 3013\n" in final
    assert "\nSTOPSIGNAL SIGTERM\n" in final
    assert "PYTHONUNBUFFERED=1" in final
    assert '\nENTRYPOINT ["tracker"]\n' in final
    assert '\nCMD ["serve", "--host", "0.0.0.0"]' in final
    assert "apt-get" not in dockerfile


def test_the_image_gets_just_what_the_wheel_is_built_from() -> None:
    """.dockerignore lets in what the Dockerfile copies, and no secret that happens to lie about."""
    copied = re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text())
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == {name for names in copied for name in names.split()}


@contextlib.contextmanager
def health(status: int | None) -> Iterator[int]:
    """The port of a server that answers its one request, if it is for /health, with `status`; None: nobody listens."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 0 if self.path == "/health" else 404)
            self.end_headers()

        def log_request(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False) as server:
        server.server_bind()
        if status is None:
            yield server.server_port
            return
        server.server_activate()
        server.timeout = 60
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield server.server_port
        thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_healthcheck_of_the_image_tells_up_from_down(status: int | None, healthy: bool) -> None:
    """Its exit code is 0 for a 200 only, whatever proxy the environment names."""
    (check,) = re.findall(r"(?m)^HEALTHCHECK .* CMD (\[.*\])$", (ROOT / "Dockerfile").read_text().replace("\\\n", ""))
    python, *arguments = json.loads(check)
    assert python == "python"
    with health(status) as port:
        environment = {**os.environ, "TRACKER_PORT": str(port), "http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
        checked = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=60)
    assert (checked.returncode == 0) == healthy


# Makefile


def make(*arguments: str, cwd: Path = ROOT, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run make as a person would: not as a part of the make that may have started these tests."""
    program = shutil.which("make")
    assert program
    inherited = {name: value for name, value in os.environ.items() if name not in INHERITED_BY_MAKE}
    environment = {**inherited, "PATH": path or os.environ["PATH"]}
    return subprocess.run([program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


class Machine:
    """A clone on a machine that has just these commands named like Pythons, each new enough or too old.

    They only note what they were asked to do; an environment that one makes holds a copy of it, and a `tracker`.
    """

    def __init__(self, directory: Path, **new_enough: bool) -> None:
        self.clone = directory / "clone"
        self.commands = directory / "commands"
        self.log = directory / "log"
        self.clone.mkdir()
        self.commands.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copyfile(ROOT / name, self.clone / name)
            os.utime(self.clone / name, (0, 0))
        for name in ("awk", "cp", "mkdir", "touch"):
            (self.commands / name).symlink_to(shutil.which(name) or name)
        for name, fits in new_enough.items():
            script = self.commands / name.replace("_", ".")
            script.write_text(
                "#!/bin/sh\n"
                f'echo "${{0##*/}} $*" >> "{self.log}"\n'
                'case "$1 $2" in\n'
                f"    -c*) exit {0 if fits else 1};;\n"
                '    "-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/tracker;;\n'
                "esac\n"
            )
            script.chmod(0o755)

    def make(self, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """What make said, and what the commands were asked to do, but for telling their age."""
        self.log.write_text("")
        done = make(*arguments, cwd=self.clone, path=str(self.commands))
        return done, [
            line.strip() for line in self.log.read_text().splitlines() if not re.match(r"\S+ (-c |import)", line)
        ]


@needs_make
def test_make_alone_lists_the_targets() -> None:
    """`help` is the default, needs no Python, and says something of each target."""
    listed = re.findall(r"(?m)^make ([a-z]+) +\S+", make().stdout)
    assert listed == [*TARGETS]
    assert make().stdout == make("help").stdout


@needs_make
def test_make_takes_the_first_python_that_is_new_enough(tmp_path: Path) -> None:
    """An old `python3` does not matter where a newer one has a name of its own."""
    machine = Machine(tmp_path, python3=False, python3_13=True, python3_11=True)
    done, asked = machine.make("serve")
    assert done.returncode == 0, done.stderr
    assert asked[0] == "python3.13 -m venv --clear .venv"


@needs_make
def test_make_without_a_fitting_python_says_so_in_one_line(tmp_path: Path) -> None:
    """And leaves nothing behind."""
    machine = Machine(tmp_path, python3=False, python3_12=False)
    done, asked = machine.make("serve")
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if "***" not in line)
    assert "needs Python 3.11 or newer" in line
    assert asked == []
    assert not (machine.clone / ".venv").exists()


@needs_make
def test_make_refuses_a_python_that_was_named_but_is_too_old(tmp_path: Path) -> None:
    """PYTHON is not silently replaced by another one."""
    machine = Machine(tmp_path, python3=True, python3_10=False)
    done, asked = machine.make("serve", "PYTHON=python3.10")
    assert done.returncode != 0
    assert "tried: python3.10." in done.stderr
    assert asked == []


@needs_make
def test_make_installs_only_what_is_new(tmp_path: Path) -> None:
    """`serve` installs the runtime dependencies once, `test` adds the others, and changed pins install both again."""
    machine = Machine(tmp_path, python3=True)
    runtime = "python -m pip install --quiet --editable ."
    development = [
        "python -m pip install --quiet --upgrade pip",
        "python -m pip install --quiet --editable . --group dev",
    ]
    first, asked = machine.make("serve", "ARGS=--port 8080")
    assert first.returncode == 0, first.stderr
    assert asked == ["python3 -m venv --clear .venv", runtime, "tracker serve --port 8080"]
    assert machine.make("serve")[1] == ["tracker serve"]

    for tool in ("ruff", "mypy"):
        shutil.copy(machine.commands / "python3", machine.clone / ".venv" / "bin" / tool)
    checks = [
        "ruff check",
        "ruff format --check",
        "mypy",
        "python -m pytest -n auto --maxprocesses 4 --dist loadfile -k sweep",
    ]
    assert machine.make("test", "ARGS=-k sweep")[1] == [*development, *checks]
    assert machine.make("test", "ARGS=-k sweep")[1] == checks

    os.utime(machine.clone / ".venv" / "bin" / "python", (0, 0))
    for stamp in (machine.clone / ".venv").glob(".installed-*"):
        os.utime(stamp, (100, 100))
    assert machine.make("serve")[1] == ["tracker serve"]
    os.utime(machine.clone / "constraints.txt", (200, 200))
    assert machine.make("serve")[1] == [runtime, "tracker serve"]
    assert machine.make("lint")[1] == [*development, *checks[:-1]]
