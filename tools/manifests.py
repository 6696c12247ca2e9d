#!/usr/bin/env python3
"""Checks what `helm template` has rendered: every object against the schema of its kind, and that what belongs together fits.

    manifests.py --kubernetes 1.35 --crds FILE... -- NAME=FILE...

Kubernetes' own kinds are checked by the schemas that kubernetes-validate carries, others by the openAPIV3Schema of their
CustomResourceDefinition, both strictly: a field that is not there is an error.
"""

import argparse
import pathlib
import re
import sys

import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
ACCOUNTS = ROOT / "deploy/nats/accounts.conf"
PROGRAMS = {"gateway", "inventory", "payment", "fulfilment", "payment-sandbox"}


def strict(schema):
    """The schema, with no fields but those that it names."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        made.setdefault("additionalProperties", False)
    return made


def custom_kinds(files):
    kinds = {}
    for file in files:
        for crd in yaml.load_all(pathlib.Path(file).read_text(), Loader=yaml.CSafeLoader):
            spec = crd["spec"]
            for version in spec["versions"]:
                kind = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                kinds[kind] = strict(version["schema"]["openAPIV3Schema"])
                # Of every kind the same, and described with none.
                kinds[kind]["properties"]["metadata"] = {"type": "object"}
    return kinds


def against_schema(thing, kubernetes, customs):
    kind = thing["apiVersion"], thing["kind"]
    if kind in customs:
        validator = jsonschema.Draft7Validator(customs[kind])
        return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(thing)]
    try:
        kubernetes_validate.validate(thing, kubernetes, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return ["there is no schema for this kind"]
    return []


def known_variables():
    """Every environment variable that a program of the workspace reads."""
    sources = [path for room in ("program", "backbone", "stock", "routes", "gateway", "processor", "payment-sandbox", "cli") for path in ROOT.glob(f"{room}/src/**/*.rs")]
    return {name for path in sources for name in re.findall(r'env = "([A-Z0-9_]+)"', path.read_text())}


def rules():
    """Prometheus' rules, as they are tested."""
    files = [ROOT / "deploy/observability/prometheus" / name for name in ("rules.yml", "alerts.yml")]
    return [group for file in files for group in yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["groups"]]


def accounts(things):
    """The users at the broker: those that are tested, and one for each step of one's own, made as docs/security.md says."""
    text = ACCOUNTS.read_text().strip()
    payment = re.search(r"^  PAYMENT \{\n.*?^  \}\n", text, re.MULTILINE | re.DOTALL).group()
    components = {thing["metadata"]["labels"]["app.kubernetes.io/component"] for thing in things if thing["kind"] == "Deployment"}
    for step in sorted(components - PROGRAMS):
        name = step.upper().replace("-", "_")
        own = payment.replace("PAYMENT", name).replace("payment", step)
        own = own.replace(".paid.", ".completed.").replace(".refunded.", ".compensated.")
        text = text.replace("PROGRAMS: [", f"PROGRAMS: [{name}, ").replace("  PAYMENT {\n", f"{own}  PAYMENT {{\n")
    return text


def pod_of(thing):
    return thing["spec"]["template"] if thing["kind"] in ("Deployment", "Job") else None


def together(things, variables):
    """What no schema says: complaints about objects that do not fit each other, or are less safe than promised."""
    pods = [pod_of(thing) for thing in things if pod_of(thing)]
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in things}

    def selected(labels):
        return [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]

    for thing in things:
        kind, spec = thing["kind"], thing.get("spec", {})
        where = f"{kind} {thing['metadata']['name']}"
        labels = None
        if kind == "PrometheusRule" and spec["groups"] != rules():
            yield f"{where}: other rules than those of deploy/observability/prometheus"
        if kind == "ConfigMap" and thing["data"].get("accounts.conf", accounts(things)).strip() != accounts(things):
            yield f"{where}: other users than those of deploy/nats/accounts.conf"
        if kind == "Service":
            labels = spec["selector"]
        elif kind in ("PodDisruptionBudget", "Deployment"):
            labels = spec["selector"]["matchLabels"]
        elif kind == "NetworkPolicy":
            labels = spec["podSelector"]["matchLabels"]
        elif kind in ("HorizontalPodAutoscaler", "ScaledObject"):
            if ("Deployment", spec["scaleTargetRef"]["name"]) not in names:
                yield f"{where}: scales nothing"
        if labels is not None and len(selected(labels)) != 1:
            yield f"{where}: selects {len(selected(labels))} workloads"
        if kind == "Service" and selected(labels):
            container = selected(labels)[0]["spec"]["containers"][0]
            ports = {port["name"] for port in container["ports"]}
            for port in spec["ports"]:
                if port["targetPort"] not in ports:
                    yield f"{where}: there is no port {port['targetPort']}"
        pod = pod_of(thing)
        if not pod:
            continue
        if kind == "Deployment" and any(scaled_by(other, where) for other in things) == ("replicas" in spec):
            yield f"{where}: replicas are for it to say or for what scales it, and for one of them alone"
        pod = pod["spec"]
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{where}: mounts a token"
        if not pod["securityContext"].get("runAsNonRoot"):
            yield f"{where}: may run as root"
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            security = container["securityContext"]
            if not security.get("readOnlyRootFilesystem") or security.get("allowPrivilegeEscalation") is not False:
                yield f"{where}: its root may be written to, or it may gain privileges"
            if "memory" not in container["resources"].get("limits", {}):
                yield f"{where}: no limit of memory"
            if kind == "Deployment" and not {"livenessProbe", "readinessProbe"} <= container.keys():
                yield f"{where}: not probed"
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            if mounts != volumes:
                yield f"{where}: volumes {sorted(volumes)}, mounts {sorted(mounts)}"
            env = {variable["name"]: variable.get("value", "") for variable in container["env"]}
            if len(env) != len(container["env"]):
                yield f"{where}: a variable twice"
            for name in env:
                inserted = any(f"$({name})" in value for value in env.values())
                if name not in variables and not name.startswith("OTEL_") and not inserted:
                    yield f"{where}: no program reads {name}"
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            for name, value in env.items():
                if value.startswith("/") and not any(value.startswith(path + "/") for path in paths):
                    yield f"{where}: {name} is {value}, which is on no volume"
            seconds = sum(int(env.get(name, "0s").rstrip("s")) for name in ("DRAIN_DELAY", "DRAIN_TIMEOUT"))
            if "DRAIN_TIMEOUT" in env and pod.get("terminationGracePeriodSeconds", 30) < seconds + 3:
                yield f"{where}: is killed before it has drained"
            for line in yaml.safe_dump(container["env"]).splitlines():
                if re.search(r"://[^/@\s]*:(?!\$\()[^/@\s]*@", line):
                    yield f"{where}: a password in the clear"


def scaled_by(other, where):
    if other["kind"] not in ("HorizontalPodAutoscaler", "ScaledObject"):
        return False
    return where == f"Deployment {other['spec']['scaleTargetRef']['name']}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubernetes", required=True)
    parser.add_argument("--crds", nargs="*", default=[])
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args()
    customs, variables = custom_kinds(args.crds), known_variables()
    bad = False
    for name, path in (named.split("=", 1) for named in args.files):
        things = [thing for thing in yaml.load_all(pathlib.Path(path).read_text(), Loader=yaml.CSafeLoader) if thing]
        complaints = [
            f"{thing['kind']} {thing['metadata']['name']}: {complaint}"
            for thing in things
            for complaint in against_schema(thing, args.kubernetes, customs)
        ]
        complaints += together(things, variables)
        for complaint in complaints:
            print(f"{name}: {complaint}", file=sys.stderr)
        kinds = sorted({thing["kind"] for thing in things})
        print(f"{name}: {len(things)} objects, {len(complaints)} complaints ({', '.join(kinds)})")
        bad = bad or bool(complaints) or not things
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
