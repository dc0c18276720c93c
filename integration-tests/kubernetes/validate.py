"""Validates the resources in contrib/kubernetes, whose path is the argument, against the API schemas of Kubernetes and of the
Prometheus operator.

The sidecar's patch is applied as kustomize applies it: mappings are merged, and lists of named items are merged by name.
"""

import pathlib
import sys

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1

# An older version of Kubernetes, and the newest version that has a schema in the package kubernetes-validate.
VERSIONS = ["1.34", "1.37"]


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


def merge(base, patch):
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: merge(base[key], value) if key in base else value for key, value in patch.items()}
    if isinstance(base, list) and isinstance(patch, list) and all("name" in item for item in base + patch):
        named = {item["name"]: item for item in base}
        for item in patch:
            named[item["name"]] = merge(named.get(item["name"], {}), item)
        return list(named.values())
    return patch


def resources(folder):
    """All resources of the kustomization in this folder and of its components, and the patches of the kustomization."""
    kustomization = documents(folder / "kustomization.yaml")[0]
    named = set(kustomization["resources"]) | {patch["path"] for patch in kustomization.get("patches", [])}
    present = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert named == present, f"{folder}: {named} are named, {present} are present"
    found = [document for name in kustomization["resources"] for document in documents(folder / name)]
    for component in kustomization.get("components", []):
        added, patches = resources(folder / component)
        found += added
        for patch, target in patches:
            key, value = target["labelSelector"].split("=")
            selected = [i for i, it in enumerate(found) if it["kind"] == target["kind"] and it["metadata"]["labels"].get(key) == value]
            assert len(selected) == 1, f"{target} selects {selected}"
            found[selected[0]] = merge(found[selected[0]], patch | {"metadata": {}})
    patches = [(documents(folder / patch["path"])[0], patch["target"]) for patch in kustomization.get("patches", [])]
    return found, patches


def validate(resource):
    if resource["apiVersion"].startswith("monitoring.coreos.com/"):
        model = getattr(v1, resource["kind"]).model_validate(resource)
        known = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
        # cloudcoil's model of the resource accepts unknown fields, but drops them from the result.
        assert known == resource, f"{resource['kind']} has unknown fields"
    else:
        for version in VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)


def main():
    found, _ = resources(pathlib.Path(sys.argv[1]))
    for resource in found:
        validate(resource)
        print(resource["kind"], resource["metadata"]["name"])
    rejects_errors(found)


def rejects_errors(found):
    """Checks that the validation rejects each resource if an unknown field is added to it."""
    for resource in found:
        wrong = resource | {"spec": resource["spec"] | {"unknownField": 1}}
        try:
            validate(wrong)
        except (kubernetes_validate.ValidationError, AssertionError):
            continue
        raise AssertionError(f"an unknown field in {resource['kind']} is accepted")


if __name__ == "__main__":
    main()
