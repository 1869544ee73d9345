//! The promises of the deployment, one by one.

use serde_json::Value;

use super::{Object, ROLES, list_of, render, workload};

const COMPONENT: &str = "app.kubernetes.io/component";
const NAME: &str = "app.kubernetes.io/name";

/// Bytes of a quantity such as `512Mi`.
fn bytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap_or_else(|| panic!("{quantity} is not a quantity"));
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        unit => panic!("unit {unit}"),
    };
    digits.parse::<u64>().expect("a number") * unit
}

/// Workloads with their pods.
fn workloads(objects: &[Object]) -> Vec<(String, Object)> {
    objects.iter().filter_map(|object| Some((object.id(), object.pods()?))).collect()
}

#[test]
fn labels_are_those_that_the_commands_select() {
    let Some(objects) = render("overlays/dev") else { return };
    // `kubectl rollout restart deployment|statefulset -l app.kubernetes.io/name=tempo`, `kubectl logs -l …,app.kubernetes.io/component=…`
    for (role, kind) in ROLES {
        let object = workload(&objects, role);
        for labels in [object, &object.pods().expect("it has pods")] {
            assert_eq!((labels.label(NAME), labels.label(COMPONENT)), ("tempo", role), "{}", object.id());
        }
        let containers = object.pods().expect("it has pods").containers();
        assert_eq!(containers.len(), 1);
        assert_eq!(containers[0].text("/name"), role, "dashboards select by the container's name");
        assert_eq!(list_of(containers[0].at("/args"))[0], format!("-target={role}"));
        assert_eq!(object.kind(), kind);
    }
    let restarted = objects.iter().filter(|object| matches!(object.kind(), "Deployment" | "StatefulSet") && object.label(NAME) == "tempo");
    assert_eq!(restarted.count(), ROLES.len(), "a rollout must not restart the bucket or the cache");
}

#[test]
fn ports_are_forwarded_by_the_services_of_the_commands() {
    let Some(objects) = render("overlays/dev") else { return };
    for (service, port) in [
        ("tempo-query-frontend", 3100),
        ("tempo-distributor", 4317),
        ("distributor", 4317),
        ("query-frontend", 3100),
        ("mcrouter", 5000),
        ("minio", 9000),
        ("gossip-ring", 7946),
    ] {
        let found = objects.iter().find(|object| object.kind() == "Service" && object.name() == service);
        let ports = list_of(found.unwrap_or_else(|| panic!("no service {service}")).at("/spec/ports"));
        assert!(ports.iter().any(|there| there["port"] == port), "{service}: {ports:?}");
    }
    for discovery in ["gossip-ring", "query-frontend-discovery"] {
        let found = objects.iter().find(|object| object.kind() == "Service" && object.name() == discovery).expect("it is there");
        assert_eq!(found.at("/spec/publishNotReadyAddresses"), true, "{discovery}");
        assert_eq!(found.text("/spec/clusterIP"), "None", "{discovery}");
    }
}

#[test]
fn pods_have_no_rights_that_they_do_not_need() {
    let Some(objects) = render("overlays/dev") else { return };
    for (id, pods) in workloads(&objects) {
        let pod = |pointer: &str| pods.at(&format!("/spec{pointer}")).clone();
        assert_eq!(pod("/automountServiceAccountToken"), false, "{id}");
        assert_eq!(pod("/enableServiceLinks"), false, "{id}");
        assert_eq!(pod("/securityContext/runAsNonRoot"), true, "{id}");
        for key in ["runAsUser", "runAsGroup", "fsGroup"] {
            assert_eq!(pod(&format!("/securityContext/{key}")), 65532, "{id}: {key}");
        }
        assert_eq!(pod("/securityContext/seccompProfile/type"), "RuntimeDefault", "{id}");
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            assert_eq!(pod(&format!("/{key}")), Value::Null, "{id}: {key}");
        }
        for container in pods.containers() {
            let id = format!("{id}, container {}", container.text("/name"));
            let security = |key: &str| container.at(&format!("/securityContext/{key}")).clone();
            assert_eq!(security("readOnlyRootFilesystem"), true, "{id}");
            assert_eq!(security("allowPrivilegeEscalation"), false, "{id}");
            assert_eq!(security("privileged"), false, "{id}");
            assert_eq!(security("capabilities/drop"), serde_json::json!(["ALL"]), "{id}");
            assert_eq!(security("capabilities/add"), Value::Null, "{id}");
            assert_eq!(security("runAsUser"), Value::Null, "{id} overrides its pod's user");
            for key in ["limits", "requests"] {
                for resource in ["cpu", "memory"] {
                    assert!(container.at(&format!("/resources/{key}/{resource}")).is_string(), "{id}: {key} of {resource}");
                }
            }
        }
    }
    let accounts = objects.iter().filter(|object| object.kind() == "ServiceAccount");
    accounts.for_each(|account| assert_eq!(account.at("/automountServiceAccountToken"), false, "{}", account.id()));
}

#[test]
fn images_come_from_one_mirror_with_a_version() {
    let Some(objects) = render("overlays/dev") else { return };
    for (id, pods) in workloads(&objects) {
        for container in pods.containers() {
            let image = container.text("/image");
            assert!(image.starts_with("ghcr.io/rubato-tracing/"), "{id}: {image}");
            let tag = image.rsplit_once(':').map(|(_, tag)| tag);
            assert!(tag.is_some_and(|tag| tag != "latest"), "{id}: {image}");
        }
    }
}

#[test]
fn ports_of_containers_are_the_documented_ones() {
    let Some(objects) = render("overlays/dev") else { return };
    for (role, _) in ROLES {
        let pods = workload(&objects, role).pods().expect("it has pods");
        let ports: Vec<(String, u64)> = list_of(pods.containers()[0].at("/ports"))
            .iter()
            .map(|port| (port["name"].as_str().expect("a name").to_owned(), port["containerPort"].as_u64().expect("a number")))
            .collect();
        let has = |name: &str, number: u64| ports.contains(&(name.to_owned(), number));
        assert!(has("http", 3100) && has("grpc", 9095), "{role}: {ports:?}");
        assert_eq!(has("grpc-otlp", 4317), role == "distributor", "{role}");
        let is_member = role != "query-frontend";
        assert_eq!(has("tcp-gossip", 7946), is_member, "{role}");
        assert_eq!(pods.label("tempo-gossip-member") == "true", is_member, "{role}");
        assert_eq!(has("tcp-dataflow", 7947), matches!(role, "ingester" | "metrics-generator"), "{role}");
    }
}

#[test]
fn objects_come_in_waves() {
    let Some(objects) = render("overlays/dev") else { return };
    let wave = |object: &Object| object.at("/metadata/annotations").get("argocd.argoproj.io/sync-wave").cloned().unwrap_or_default();
    for object in &objects {
        let id = object.id();
        let expected = match object.name() {
            name if name.starts_with("minio") || name == "tempo-minio" => Value::from("-2"),
            name if name.starts_with("memcached") || name.starts_with("mcrouter") => Value::from("-1"),
            _ if object.kind() == "ServiceAccount" => Value::from("-3"),
            _ => Value::Null,
        };
        assert_eq!(wave(object), expected, "{id}");
    }
}

#[test]
fn config_maps_are_immutable_and_named_by_their_content() {
    let Some(objects) = render("overlays/dev") else { return };
    let maps: Vec<&Object> = objects.iter().filter(|object| object.kind() == "ConfigMap").collect();
    assert!(maps.len() >= 5, "{maps:?}");
    for map in maps {
        assert_eq!(map.at("/immutable"), true, "{}", map.id());
        let hash = map.name().rsplit_once('-').map_or("", |(_, hash)| hash);
        assert!(hash.len() == 10 && hash.chars().all(char::is_alphanumeric), "{} has no hash in its name", map.id());
        for (key, content) in map.at("/data").as_object().expect("it has data") {
            let content = content.as_str().expect("text");
            assert!(!content.contains("rubato-dev-only"), "{} {key} has a secret", map.id());
        }
    }
}

#[test]
fn ingesters_end_gracefully_with_the_log_in_memory() {
    let Some(objects) = render("overlays/dev") else { return };
    let ingester = workload(&objects, "ingester");
    assert!(ingester.at("/spec/replicas").as_u64() >= Some(3));
    assert_eq!(ingester.text("/spec/podManagementPolicy"), "Parallel");
    let pods = ingester.pods().expect("it has pods");
    assert!(pods.at("/spec/terminationGracePeriodSeconds").as_u64() >= Some(1200));
    let data = list_of(pods.at("/spec/volumes")).into_iter().find(|volume| volume["name"] == "data").expect("a volume for data");
    assert_eq!(data["emptyDir"]["medium"], "Memory");
    let limit = bytes(pods.containers()[0].at("/resources/limits/memory"));
    assert!(bytes(&data["emptyDir"]["sizeLimit"]) * 2 <= limit, "pages of the volume count as the container's memory");
}

#[test]
fn every_role_is_probed_protected_and_spread() {
    let Some(objects) = render("overlays/dev") else { return };
    for (role, _) in ROLES {
        let pods = workload(&objects, role).pods().expect("it has pods");
        let container = &pods.containers()[0];
        assert_eq!(container.text("/readinessProbe/httpGet/path"), "/ready", "{role}");
        assert_eq!(container.text("/livenessProbe/httpGet/path"), "/live", "{role}");
        assert!(!list_of(pods.at("/spec/topologySpreadConstraints")).is_empty(), "{role}");
        assert!(pods.at("/spec/terminationGracePeriodSeconds").as_u64() >= Some(60), "{role}");
        let has = |kind: &str| objects.iter().any(|object| object.kind() == kind && object.name() == format!("tempo-{role}"));
        assert_eq!(has("PodDisruptionBudget"), !matches!(role, "metrics-generator" | "compactor"), "{role}");
        assert_eq!(has("HorizontalPodAutoscaler"), matches!(role, "distributor" | "querier" | "metrics-generator"), "{role}");
        assert_eq!(pods.label("sidecar.istio.io/inject"), "true", "{role}");
        let endpoint = list_of(container.at("/env")).into_iter().find(|variable| variable["name"] == "JAEGER_ENDPOINT");
        let endpoint = endpoint.unwrap_or_else(|| panic!("{role}: own traces go nowhere"));
        assert_eq!(endpoint["value"], "http://jaeger-collector.jaeger.svc.cluster.local:14268/api/traces");
    }
    // The mesh and the network let through what the roles need, and mTLS is strict.
    let kinds: Vec<&str> = objects.iter().map(Object::kind).collect();
    for kind in ["PeerAuthentication", "Sidecar", "Telemetry", "NetworkPolicy"] {
        assert!(kinds.contains(&kind), "no {kind}");
    }
    let mtls = objects.iter().find(|object| object.kind() == "PeerAuthentication").expect("it is there");
    assert_eq!(mtls.text("/spec/mtls/mode"), "STRICT");
}

#[test]
fn polling_is_off_where_nobody_reads_blocks() {
    let Some(objects) = render("overlays/dev") else { return };
    for (role, _) in ROLES {
        let pods = workload(&objects, role).pods().expect("it has pods");
        let off = list_of(pods.containers()[0].at("/args")).contains(&Value::from("-storage.trace.blocklist_poll=0"));
        assert_eq!(off, matches!(role, "distributor" | "ingester" | "metrics-generator"), "{role}");
    }
}
