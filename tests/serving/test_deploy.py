"""What ``deploy/`` says exists: keys of the command, ports, paths, environment, files, metrics."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.compose import compose
from serving.metrics import Metrics
from serving.openapi import openapi
from serving.server_config import ServeConfig

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CONTAINER = (DEPLOY / "Containerfile").read_text(encoding="utf-8")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def of_kind(kind: str) -> list[Any]:
    files = sorted(path.name for path in (DEPLOY / "kubernetes").glob("*.yaml"))
    return [each for file in files for each in documents(f"kubernetes/{file}") if each["kind"] == kind]


def instruction(name: str) -> list[str]:
    (words,) = re.findall(rf"^{name} (\[.*\])$", CONTAINER, re.MULTILINE)
    found: list[str] = json.loads(words)
    return found


def serve_config(words: list[str], environment: list[str], monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    """What the command makes of the words, with nothing but ``environment`` to take secrets from."""
    for name in ("SHOPREEL_API_KEY", "SHOPREEL_CURSOR_SECRET"):
        monkeypatch.delenv(name, raising=False)
    for name in environment:
        monkeypatch.setenv(name, f"0123456789abcdef-{name}")
    command, *overrides = [*instruction("ENTRYPOINT"), *words]
    assert [command, overrides[0]] == ["shopreel", "serve"]
    return compose("serve", overrides[1:], ServeConfig)


def server() -> tuple[Any, Any]:
    """The server's deployment, and its container."""
    (deployment,) = of_kind("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return deployment, container


def test_the_container_serves_with_a_key_and_on_the_port_it_exposes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = serve_config(instruction("CMD"), ["SHOPREEL_API_KEY"], monkeypatch)
    assert (config.host, config.http.api_keys) == ("0.0.0.0", ["0123456789abcdef-SHOPREEL_API_KEY"])
    assert f"EXPOSE {config.port}" in CONTAINER
    assert f"http://127.0.0.1:{config.port}/readyz" in CONTAINER
    for file in re.findall(r"-r (\S+\.txt)", CONTAINER):
        assert (DEPLOY.parent / file).is_file()
    assert "USER 10001" in CONTAINER


def test_compose_starts_servers_that_share_a_durable_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = documents("compose.yaml")
    services = file["services"]
    config = serve_config(services["server"]["command"], list(services["server"]["environment"]), monkeypatch)
    assert config.store == "redis://redis:6379/0"
    assert {"redis", "prometheus", "grafana"} <= set(services)
    assert "--appendonly yes --appendfsync always" in services["redis"]["command"]
    assert services["server"]["expose"] == [str(config.port)]
    assert f"server:{config.port}" in services["proxy"]["command"]
    assert (
        DEPLOY / services["server"]["build"]["context"] / services["server"]["build"]["dockerfile"]
    ).is_file()
    mounted = [volume for service in services.values() for volume in service.get("volumes", ())]
    for volume in mounted:
        if volume.startswith("./"):
            assert (DEPLOY / volume.split(":")[0]).exists(), volume
    (scrape,) = documents("prometheus.yml")[0]["scrape_configs"]
    (names,) = scrape["dns_sd_configs"]
    assert (names["names"], names["port"], scrape["metrics_path"]) == (["server"], config.port, "/metrics")


def test_kubernetes_probes_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment, container = server()
    config = serve_config(container["args"], [entry["name"] for entry in container["env"]], monkeypatch)
    assert config.cursor_secret == "0123456789abcdef-SHOPREEL_CURSOR_SECRET"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": config.port}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz",
    }  # fmt: skip
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert {"/readyz", "/healthz", "/metrics"} <= set(openapi("0")["paths"])
    notes = deployment["spec"]["template"]["metadata"]["annotations"]
    assert (notes["prometheus.io/port"], notes["prometheus.io/path"]) == (str(config.port), "/metrics")
    pod = deployment["spec"]["template"]["spec"]
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > waits + config.http.shutdown_s + 10
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_services_find_their_pods() -> None:
    deployment, container = server()
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind("Service")}
    assert services["shopreel"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    (redis,) = of_kind("StatefulSet")
    assert redis["spec"]["serviceName"] in services
    assert services["shopreel-redis"]["selector"] == redis["spec"]["template"]["metadata"]["labels"]
    (store,) = [word for word in container["args"] if word.startswith("store=")]
    (port,) = services["shopreel-redis"]["ports"]
    assert store == f"store=redis://shopreel-redis:{port['port']}/0"
    assert redis["spec"]["template"]["spec"]["containers"][0]["args"][-2:] == ["--appendfsync", "always"]


def test_the_dashboard_draws_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "shopreel.json").read_text(encoding="utf-8"))
    metrics = {metric.name: metric for metric in Metrics().registry.collect()}
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 10
    for expression in expressions:
        used = re.findall(r"(shopreel_\w+?)(_total|_bucket|_sum|_count)?(?=[{\[)])", expression)
        assert used, expression
        for name, suffix in used:
            kind = metrics[name].type
            ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}[kind]
            assert suffix in ends, expression
    text = Metrics().text().decode()
    for name in metrics:
        assert f"# TYPE {name}" in text
