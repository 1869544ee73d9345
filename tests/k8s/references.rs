//! What objects say of each other is there: selectors, volumes, keys, ports, targets.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Object, list_of, render};

/// Whether labels have everything that a selector asks for.
fn selects(selector: &Value, labels: &Value) -> bool {
    let Some(wanted) = selector.as_object() else { return false };
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

fn workloads(objects: &[Object]) -> impl Iterator<Item = (&Object, Object)> {
    objects.iter().filter_map(|object| object.pods().map(|pods| (object, pods)))
}

#[test]
fn selectors_find_what_they_are_meant_for() {
    let Some(objects) = render("overlays/dev") else { return };
    let templates: Vec<(String, Value)> =
        workloads(&objects).map(|(object, pods)| (object.id(), pods.at("/metadata/labels").clone())).collect();
    for object in &objects {
        let id = object.id();
        match object.kind() {
            "Deployment" | "StatefulSet" => {
                let selector = object.at("/spec/selector/matchLabels");
                let own = templates.iter().filter(|(_, labels)| selects(selector, labels)).map(|(name, _)| name.as_str());
                assert_eq!(own.collect::<Vec<_>>(), [id.as_str()], "{id} must select its own pods and no others");
                if selector.get("app.kubernetes.io/name") == Some(&"tempo".into()) {
                    let keys: Vec<&String> = selector.as_object().expect("labels").keys().collect();
                    assert_eq!(keys, ["app.kubernetes.io/component", "app.kubernetes.io/name"], "selector of {id}");
                }
            }
            "Service" => {
                let selector = object.at("/spec/selector");
                let found: Vec<&Object> = objects
                    .iter()
                    .filter(|other| other.pods().is_some_and(|pods| selects(selector, pods.at("/metadata/labels"))))
                    .collect();
                assert!(!found.is_empty(), "{id} selects nothing");
                for port in list_of(object.at("/spec/ports")) {
                    assert!(port.get("appProtocol").is_some(), "{id} leaves a protocol to be guessed: {port}");
                    for target in &found {
                        let pods = target.pods().expect("it has pods");
                        let named = pods.containers().iter().flat_map(|container| list_of(container.at("/ports"))).collect::<Vec<_>>();
                        let target_port = named.iter().find(|there| there.get("name") == port.get("targetPort"));
                        let number = target_port.and_then(|there| there.get("containerPort"));
                        assert_eq!(number, port.get("port"), "{id}: port {port} of {}", target.id());
                    }
                }
            }
            "PodDisruptionBudget" => {
                let selector = object.at("/spec/selector/matchLabels");
                assert!(templates.iter().any(|(_, labels)| selects(selector, labels)), "{id} selects nothing");
            }
            "NetworkPolicy" => {
                let selector = object.at("/spec/podSelector/matchLabels");
                assert!(templates.iter().any(|(_, labels)| selects(selector, labels)), "{id} selects nothing");
            }
            "HorizontalPodAutoscaler" => {
                let (kind, name) = (object.text("/spec/scaleTargetRef/kind"), object.text("/spec/scaleTargetRef/name"));
                let target = objects.iter().find(|other| other.kind() == kind && other.name() == name);
                let target = target.unwrap_or_else(|| panic!("{id} scales {kind} {name}, which is not there"));
                assert!(target.at("/spec/replicas").is_null(), "{id} and {} both say how many replicas there are", target.id());
                let pods = target.pods().expect("it has pods");
                let containers: Vec<String> = pods.containers().iter().map(|container| container.text("/name").to_owned()).collect();
                for metric in list_of(object.at("/spec/metrics")) {
                    let container = metric.pointer("/containerResource/container").and_then(Value::as_str).expect("metrics of a container");
                    assert!(containers.iter().any(|name| name == container), "{id}: container {container}");
                }
            }
            _ => {}
        }
        if object.kind() == "StatefulSet" {
            let name = object.text("/spec/serviceName");
            let service = objects.iter().find(|other| other.kind() == "Service" && other.name() == name);
            let service = service.unwrap_or_else(|| panic!("{id}: no service {name}"));
            assert!(name == "minio" || service.text("/spec/clusterIP") == "None", "{id}: service {name} has an address of its own");
        }
    }
}

#[test]
fn volumes_keys_and_ports_of_pods_are_there() {
    let Some(objects) = render("overlays/dev") else { return };
    let mut keys: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    for object in &objects {
        let all = ["/data", "/stringData", "/binaryData"].map(|part| object.at(part).as_object().cloned().unwrap_or_default());
        keys.insert((object.kind(), object.name()), all.iter().flat_map(|part| part.keys().cloned()).collect());
    }
    for (object, pods) in workloads(&objects) {
        let id = object.id();
        let volumes = list_of(pods.at("/spec/volumes"));
        let mut names: Vec<String> = volumes.iter().filter_map(|volume| volume.get("name")?.as_str().map(str::to_owned)).collect();
        names.extend(
            list_of(object.at("/spec/volumeClaimTemplates"))
                .iter()
                .filter_map(|claim| Some(claim.pointer("/metadata/name")?.as_str()?.to_owned())),
        );
        let mut maps: Vec<&str> = Vec::new();
        for volume in &volumes {
            let projected = volume.pointer("/projected/sources").and_then(Value::as_array).into_iter().flatten();
            maps.extend(projected.chain([volume]).filter_map(|source| source.pointer("/configMap/name")?.as_str()));
        }
        for map in maps {
            assert!(keys.contains_key(&("ConfigMap", map)), "{id}: no ConfigMap {map}");
        }
        let mut mounted = BTreeSet::new();
        for container in pods.containers() {
            for mount in list_of(container.at("/volumeMounts")) {
                let name = mount.get("name").and_then(Value::as_str).expect("a name").to_owned();
                assert!(names.contains(&name), "{id}: no volume {name}");
                mounted.insert(name);
            }
            for variable in list_of(container.at("/env")) {
                let Some(from) = variable.pointer("/valueFrom/secretKeyRef") else { continue };
                let (name, key) = (from["name"].as_str().expect("a name"), from["key"].as_str().expect("a key"));
                let there = keys.get(&("Secret", name)).unwrap_or_else(|| panic!("{id}: no Secret {name}"));
                assert!(there.contains(key), "{id}: Secret {name} has no {key}");
            }
            let ports = list_of(container.at("/ports"));
            for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
                for way in ["httpGet", "tcpSocket"] {
                    let port = container.at(&format!("/{probe}/{way}/port"));
                    assert!(port.is_null() || ports.iter().any(|there| there.get("name") == Some(port)), "{id}: {probe} asks {port}");
                }
            }
        }
        assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), mounted, "{id}: volumes and mounts");
    }
}
